"""GraniteMoe-SWA: a GraniteMoeShared whose attention has sinks, in each layer a rope of its own or none."""

from dataclasses import replace

from upcycle.families.parts import Tensor
from upcycle.families.readers import Readers
from upcycle.families.targets.granitemoeshared import GRANITEMOESHARED, SHARED_MLP
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER

_SPARSE = LAYER + "block_sparse_moe."

NO_SINK = -(2.0**15)
"""Score of a sink that takes no attention: its share, exp(-32768 - m) by the largest score m, is zero in all dtypes."""

GRANITEMOE_SWA = replace(
    GRANITEMOESHARED,
    model_type="granitemoe_swa",
    model_class="GraniteMoeSWAForCausalLM",
    title="GraniteMoe-SWA",
    tensors=(
        *CARRIED,
        *BIASES,
        Tensor("attention", LAYER + "self_attn.sinks", ("N",), ("attention.sinks",), fill=NO_SINK),
        *SHARED_MLP,
        Tensor("router", _SPARSE + "router.weight", ("E", "D"), ("router",)),
        Tensor("experts", _SPARSE + "experts.gate_up_proj", ("E", "2M", "D"), ("expert.gate", "expert.up")),
        Tensor("experts", _SPARSE + "experts.down_proj", ("E", "D", "M"), ("expert.down",)),
    ),
    limits=((lambda _: True, "llama.cpp's converter and mlx-lm do not know granitemoe_swa"),),
    readers=Readers(),
)
