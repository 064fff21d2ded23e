"""Qwen2, Qwen2.5 and DeepSeek's distillations of them: a llama with biases on queries, keys and values."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.parts import Place
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, ONE_KIND, Carry, Drop, Only, Uniform

_ATTENTION = "model.layers.{layer}.self_attn."

QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    model_class="Qwen2ForCausalLM",
    title="Qwen2",
    readers=Readers(),  # not tried
    parts={
        **{part: place for part, place in LLAMA.parts.items() if not part.endswith(".bias")},
        "attention.q.bias": Place(_ATTENTION + "q_proj.bias", ("Q",)),
        "attention.k.bias": Place(_ATTENTION + "k_proj.bias", ("K",)),
        "attention.v.bias": Place(_ATTENTION + "v_proj.bias", ("K",)),
    },
    fields={
        **COMMON,
        "vocab_size": Carry(151936, "size"),
        "intermediate_size": Carry(22016, "size"),
        "num_key_value_heads": Carry(32, "size"),
        "max_position_embeddings": Carry(32768, "size"),
        "attention_bias": Drop("the class has these three biases whatever it says"),
        "use_sliding_window": Only((False,), ONE_KIND),
        **dict.fromkeys(("sliding_window", "max_window_layers"), Drop("use_sliding_window is false")),
        "layer_types": Uniform(("full_attention",), ONE_KIND),
    },
    rope=Rope(theta=10_000.0),
)
