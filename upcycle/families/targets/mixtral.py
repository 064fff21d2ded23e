"""Mixtral: what llama, mistral and models shaped like them become; every reader knows it."""

from upcycle.families.parts import Tensor
from upcycle.families.readers import Readers
from upcycle.families.targets.llama_shaped import CARRIED, LAYER, LIMITS
from upcycle.families.targets.target import Router, Target

_SPARSE = LAYER + "block_sparse_moe."

MIXTRAL = Target(
    model_type="mixtral",
    model_class="MixtralForCausalLM",
    title="Mixtral",
    tensors=(
        *CARRIED,
        Tensor("router", _SPARSE + "gate.weight", ("E", "D"), ("router",)),
        Tensor("experts", _SPARSE + "experts.{expert}.w1.weight", ("M", "D"), ("expert.gate",)),
        Tensor("experts", _SPARSE + "experts.{expert}.w3.weight", ("M", "D"), ("expert.up",)),
        Tensor("experts", _SPARSE + "experts.{expert}.w2.weight", ("D", "M"), ("expert.down",)),
    ),
    fields={
        "num_local_experts": "E",
        "num_experts": "E",  # beside the canonical name: what mlx-lm and newer tools read
        "num_experts_per_tok": "top_k",
        "intermediate_size": "M",
    },
    constants={"output_router_logits": False, "router_aux_loss_coef": 0.02, "router_jitter_noise": 0.0},
    router=Router(scores="softmax", renormalises=True),
    limits=LIMITS,
    readers=Readers("compared", ("default", "linear", "yarn", "llama3")),
)
