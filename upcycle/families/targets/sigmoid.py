"""What mixtures share whose routers score by sigmoid, and add a bias to the scores only to select experts.

`w_i = s_i / sum_j s_j` over the selected experts, `s = sigmoid(W x)`, those with the largest `s + b` (2412.19437,
eq. 12 to 16). As they are written here, `b` is zero, there is one group of experts, and no factor: the weights sum to
one, so that copies of an FFN give what it gives.

These classes add a shared expert always, as wide as `n_shared_experts` others. Where none is asked for it has no
neurons: stock classes run it, and look for its empty tensors on disk.
"""

from dataclasses import replace

from upcycle.families.parts import SPARSE, Tensor
from upcycle.families.targets.llama_shaped import LAYER, MLP_DENSE, MLP_EXPERTS

_MLP = LAYER + "mlp."

SIGMOID_EXPERTS = (
    *MLP_EXPERTS,
    Tensor("router", _MLP + "gate.e_score_correction_bias", ("E",)),
    Tensor("shared", _MLP + "shared_experts.gate_proj.weight", ("S", "D"), ("shared.gate",), fill=0),
    Tensor("shared", _MLP + "shared_experts.up_proj.weight", ("S", "D"), ("shared.up",), fill=0),
    Tensor("shared", _MLP + "shared_experts.down_proj.weight", ("D", "S"), ("shared.down",), fill=0),
)
"""Router, experts and the shared expert of a layer."""

SIGMOID_EITHER = (*(replace(tensor, when=SPARSE) for tensor in SIGMOID_EXPERTS), *MLP_DENSE)
"""A layer's FFN, where layers may be sparse or dense."""

SIGMOID_FIELDS = {
    "n_routed_experts": "E",
    "n_shared_experts": "S/M",
    "num_experts_per_tok": "top_k",
    "moe_intermediate_size": "M",
}

SIGMOID_CONSTANTS = {
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "output_router_logits": False,
}
"""One group of experts, whose weights sum to one."""

TWO_BEST = 2
"""Experts without which these routers stop: they judge a group by its two best."""
