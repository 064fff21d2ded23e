"""GraniteMoe-SWA: a GraniteMoeShared whose attention has sinks, a window in some layers and its own rope in each."""

from dataclasses import replace

from upcycle.families.parts import Tensor
from upcycle.families.readers import Readers
from upcycle.families.targets.granitemoeshared import GRANITEMOESHARED, SHARED_MLP
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER

_SPARSE = LAYER + "block_sparse_moe."

GRANITEMOE_SWA = replace(
    GRANITEMOESHARED,
    model_type="granitemoe_swa",
    model_class="GraniteMoeSWAForCausalLM",
    title="GraniteMoe-SWA",
    tensors=(
        *CARRIED,
        *BIASES,
        Tensor("attention", LAYER + "self_attn.sinks", ("N",), ("attention.sinks",)),
        *SHARED_MLP,
        Tensor("router", _SPARSE + "router.weight", ("E", "D"), ("router",)),
        Tensor("experts", _SPARSE + "experts.gate_up_proj", ("E", "2M", "D"), ("expert.gate", "expert.up")),
        Tensor("experts", _SPARSE + "experts.down_proj", ("E", "D", "M"), ("expert.down",)),
    ),
    stacked={},  # on disk as in memory
    limits=(),
    readers=Readers(),  # not tried
)
