"""Hunyuan (0.5B to 7B): a llama whose queries and keys are normalised head by head, after their rotation."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.parts import Place
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, NO_WINDOW, Carry, Drop, Keep, Only

_ATTENTION = "model.layers.{layer}.self_attn."

HUNYUAN_V1_DENSE = replace(
    LLAMA,
    model_type="hunyuan_v1_dense",
    model_class="HunYuanDenseV1ForCausalLM",
    title="Hunyuan",
    readers=Readers(),  # not tried
    parts={
        **LLAMA.parts,
        "norm.q": Place(_ATTENTION + "query_layernorm.weight", ("H",)),
        "norm.k": Place(_ATTENTION + "key_layernorm.weight", ("H",)),
    },
    fields={
        **COMMON,
        "vocab_size": Carry(290943, "size"),
        "intermediate_size": Carry(11008, "size"),
        "num_key_value_heads": Carry(None, "size"),
        "max_position_embeddings": Carry(2048, "size"),
        "rms_norm_eps": Carry(1e-5, "number"),
        "attention_bias": Carry(False, "flag"),
        "eod_token_id": Keep(),
        # of published configs: what the class does in any case
        "use_qk_norm": Only((True,), "the class normalises queries and keys"),
        "use_cla": Only((False,), "the class shares no keys and values between layers"),
        "cla_share_factor": Drop("use_cla is false"),
        **dict.fromkeys(("sliding_window", "use_sliding_window", "max_window_layers"), Drop(NO_WINDOW)),
    },
    rope=Rope(theta=10_000.0),
)
