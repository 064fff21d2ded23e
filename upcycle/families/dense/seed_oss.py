"""Seed-OSS: a llama with biases on queries, keys and values, by default, and one on the output that may be there."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.parts import When
from upcycle.families.readers import Readers
from upcycle.families.rules import COMMON, Carry, Drop, Only

_BIASED = When("attention_bias", (True, None))  # true where the config is silent
_OUT_BIASED = When("attention_out_bias", (True,))

SEED_OSS = replace(
    LLAMA,
    model_type="seed_oss",
    model_class="SeedOssForCausalLM",
    title="Seed-OSS",
    known="Seed-OSS 36B",
    readers=Readers(),  # not tried
    parts={
        **LLAMA.parts,
        **{f"attention.{x}.bias": replace(LLAMA.parts[f"attention.{x}.bias"], when=_BIASED) for x in "qkv"},
        "attention.o.bias": replace(LLAMA.parts["attention.o.bias"], when=_OUT_BIASED),
    },
    fields={
        **COMMON,
        "vocab_size": Carry(155136, "size"),
        "intermediate_size": Carry(27648, "size"),
        "num_hidden_layers": Carry(64, "size"),
        "num_attention_heads": Carry(80, "size"),
        "num_key_value_heads": Carry(8, "size"),
        "head_dim": Carry(128, "size"),
        "max_position_embeddings": Carry(524288, "size"),
        "bos_token_id": Carry(0),
        "eos_token_id": Carry(2),
        "pad_token_id": Carry(1),
        "attention_dropout": Carry(0.1, "number"),
        "residual_dropout": Drop("of training; the target has no such dropout"),
        **dict.fromkeys(
            ("attention_bias", "attention_out_bias"),
            Only((False, True), "not a flag"),  # the target's biases are zero where the dense model has none
        ),
    },
    modules=LLAMA.modules and replace(LLAMA.modules, dropout="residual_dropout"),
    ignored_tensors=(),
)
