"""GraniteMoe: a mixture whose attention may have biases, and whose multipliers may all be one."""

from upcycle.families.parts import Tensor
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER
from upcycle.families.targets.target import Router, Target

_SPARSE = LAYER + "block_sparse_moe."

GRANITEMOE = Target(
    model_type="granitemoe",
    model_class="GraniteMoeForCausalLM",
    title="GraniteMoe",
    tensors=(
        *CARRIED,
        *BIASES,
        Tensor("router", _SPARSE + "router.layer.weight", ("E", "D"), ("router",)),
        Tensor("experts", _SPARSE + "input_linear.weight", ("E", "2M", "D"), ("expert.gate", "expert.up")),
        Tensor("experts", _SPARSE + "output_linear.weight", ("E", "D", "M"), ("expert.down",)),
    ),
    fields={
        "num_local_experts": "E",
        "num_experts_per_tok": "top_k",
        "intermediate_size": "M",
        "attention_multiplier": "scale",
    },
    constants={"output_router_logits": False, "router_aux_loss_coef": 0.001},
    router=Router("block_sparse_moe.router", scores="softmax", renormalises=True),
    block="block_sparse_moe",
    experts="block_sparse_moe.experts",
    stacked={
        "block_sparse_moe.router.weight": ("router",),
        "block_sparse_moe.experts.gate_up_proj": ("expert.gate", "expert.up"),
        "block_sparse_moe.experts.down_proj": ("expert.down",),
    },
    limits=(),
)
