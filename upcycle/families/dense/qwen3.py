"""Qwen3: a llama whose queries and keys are normalised head by head."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.parts import Place
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, ONE_KIND, Carry, Drop, Only, Uniform

_ATTENTION = "model.layers.{layer}.self_attn."

QWEN3 = replace(
    LLAMA,
    model_type="qwen3",
    model_class="Qwen3ForCausalLM",
    known="Qwen3 dense models",
    title="Qwen3",
    readers=Readers(),  # not tried
    parts={
        **LLAMA.parts,
        "norm.q": Place(_ATTENTION + "q_norm.weight", ("H",)),
        "norm.k": Place(_ATTENTION + "k_norm.weight", ("H",)),
    },
    fields={
        **COMMON,
        "vocab_size": Carry(151936, "size"),
        "intermediate_size": Carry(22016, "size"),
        "num_key_value_heads": Carry(32, "size"),
        "head_dim": Carry(128, "size"),
        "max_position_embeddings": Carry(32768, "size"),
        "attention_bias": Carry(False, "flag"),
        "use_sliding_window": Only((False,), ONE_KIND),
        **dict.fromkeys(("sliding_window", "max_window_layers"), Drop("use_sliding_window is false")),
        "layer_types": Uniform(("full_attention",), ONE_KIND),
    },
    rope=Rope(theta=10_000.0),
)
