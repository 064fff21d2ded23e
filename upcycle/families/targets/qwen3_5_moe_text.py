"""Qwen3.5-MoE, its text model: what qwen3_5_text becomes.

The stock class adds a shared expert to every layer, `y = sigmoid(g x) S(x) + sum_i w_i E_i(x)`. Here S starts as a copy
of the dense FFN with a down projection of zeros: it adds nothing, and training can move it. (A width of 0 loads with
warnings from torch.)
"""

from upcycle.families.dense.qwen3_5_text import QWEN3_5_TEXT
from upcycle.families.parts import HEAD, MATRICES, Tensor
from upcycle.families.targets.llama_shaped import LAYER, MLP_EXPERTS, STACKED
from upcycle.families.targets.target import Router, Target

_MLP = LAYER + "mlp."
_NORMS = ("norm.q", "norm.k", "norm.attention", "norm.ffn", "norm.final", "linear.norm")
_ROLES = {"embeddings": "embeddings", HEAD: "head", **dict.fromkeys(_NORMS, "norms")}

QWEN3_5_MOE_TEXT = Target(
    model_type="qwen3_5_moe_text",
    model_class="Qwen3_5MoeForCausalLM",
    title="Qwen3.5-MoE",
    tensors=(
        # all but the FFN is called and stands as in the dense class
        *(
            Tensor(_ROLES.get(part, "attention"), place.tensor, place.shape, (part,), when=place.when)
            for part, place in QWEN3_5_TEXT.parts.items()
            if part not in MATRICES
        ),
        *MLP_EXPERTS,
        Tensor("shared", _MLP + "shared_expert.gate_proj.weight", ("F", "D"), ("gate",)),
        Tensor("shared", _MLP + "shared_expert.up_proj.weight", ("F", "D"), ("up",)),
        Tensor("shared", _MLP + "shared_expert.down_proj.weight", ("D", "F")),
        Tensor("shared", _MLP + "shared_expert_gate.weight", ("1", "D")),
    ),
    fields={
        "num_experts": "E",
        "num_experts_per_tok": "top_k",
        "moe_intermediate_size": "M",
        "shared_expert_intermediate_size": "F",
    },
    constants={"output_router_logits": False, "router_aux_loss_coef": 0.001},
    router=Router("mlp.gate", scores="softmax", renormalises=True),
    block="mlp",
    experts="mlp.experts",
    stacked=STACKED,
    limits=(),
    partial_rotary=True,
)
