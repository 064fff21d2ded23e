"""Ministral: a Mistral whose config lists which of its layers have the sliding window."""

from dataclasses import replace

from upcycle.families.dense.mistral import MISTRAL
from upcycle.families.readers import Readers
from upcycle.families.rules import ONE_KIND, CarryIn, Uniform

MINISTRAL = replace(
    MISTRAL,
    model_type="ministral",
    model_class="MinistralForCausalLM",
    known="Ministral 8B",
    title="Ministral",
    readers=Readers(),  # not tried
    fields={
        **MISTRAL.fields,
        # MinistralConfig: without a list, all layers have the window where there is one
        "sliding_window": CarryIn(4096, "layer_types", "sliding_attention"),
        "layer_types": Uniform(("full_attention", "sliding_attention"), ONE_KIND),
    },
)
