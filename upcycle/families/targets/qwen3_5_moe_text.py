"""Qwen3.5-MoE, its text model: what qwen3_5_text becomes.

The stock class adds a shared expert to every layer, `y = sigmoid(g x) S(x) + sum_i w_i E_i(x)`. With whole experts it
is narrow and all zero: of width 0 torch warns whenever the model is loaded. Of a gate of zeros it counts half, so the
down projection is doubled.
"""

from upcycle.families.dense.qwen3_5_text import QWEN3_5_TEXT
from upcycle.families.parts import HEAD, MATRICES, Tensor
from upcycle.families.targets.llama_shaped import LAYER, MLP_EXPERTS
from upcycle.families.targets.target import Router, Target

_SHARED = LAYER + "mlp.shared_expert."
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
        Tensor("shared", _SHARED + "gate_proj.weight", ("S", "D"), ("shared.gate",), fill=0),
        Tensor("shared", _SHARED + "up_proj.weight", ("S", "D"), ("shared.up",), fill=0),
        Tensor("shared", _SHARED + "down_proj.weight", ("D", "S"), ("shared.down",), 2.0, fill=0),
        Tensor("shared", LAYER + "mlp.shared_expert_gate.weight", ("1", "D")),
    ),
    fields={
        "num_experts": "E",
        "num_experts_per_tok": "top_k",
        "moe_intermediate_size": "M",
        "shared_expert_intermediate_size": "S",
    },
    constants={"output_router_logits": False, "router_aux_loss_coef": 0.001},
    router=Router(scores="softmax", renormalises=True),
    limits=((lambda _: True, "mlx-lm does not know qwen3_5_moe_text"),),
    partial_rotary=True,
    idle_width=32,  # rows that other programs quantise and divide over devices
)
