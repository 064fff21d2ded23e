"""Mistral 7B and Nemo: a llama whose attention may have a sliding window."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.rules import COMMON, Carry, Only

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    model_class="MistralForCausalLM",
    known="Mistral 7B, Nemo, Small 24B text",
    title="Mistral",
    fields={
        **COMMON,
        "intermediate_size": Carry(14336, "size"),
        "num_key_value_heads": Carry(8, "size"),
        "max_position_embeddings": Carry(4096 * 32, "size"),
        "sliding_window": Carry(4096, "size"),
        # AutoConfig (configuration_auto.py) then loads the model as a Ministral, which obeys these
        "layer_types": Only((), "a mistral with layer_types is read as a Ministral, another architecture"),
    },
)
