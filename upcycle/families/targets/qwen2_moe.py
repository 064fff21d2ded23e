"""Qwen2-MoE: the dense FFN once, as a shared expert behind a sigmoid gate, and small experts beside it.

`y = sigmoid(g x) FFN(x) + sum_i w_i D_i(act(G_i x) * U_i x)`; a gate of zeros counts the shared expert half, so its
down projection is doubled.
"""

from upcycle.families.parts import Tensor
from upcycle.families.targets.llama_shaped import CARRIED, LAYER, LIMITS, MLP_EXPERTS, STACKED
from upcycle.families.targets.target import Router, Target

_MLP = LAYER + "mlp."

QWEN2_MOE = Target(
    model_type="qwen2_moe",
    model_class="Qwen2MoeForCausalLM",
    title="Qwen2-MoE",
    tensors=(
        *CARRIED,
        *(
            Tensor("attention", f"{LAYER}self_attn.{name}_proj.bias", (letter,))
            for name, letter in (("q", "Q"), ("k", "K"), ("v", "K"))
        ),
        Tensor("shared", _MLP + "shared_expert.gate_proj.weight", ("S", "D"), ("shared.gate",)),
        Tensor("shared", _MLP + "shared_expert.up_proj.weight", ("S", "D"), ("shared.up",)),
        # the shared expert counts sigmoid(gate) = sigmoid(0) = 1/2
        Tensor("shared", _MLP + "shared_expert.down_proj.weight", ("D", "S"), ("shared.down",), factor=2.0),
        Tensor("shared", _MLP + "shared_expert_gate.weight", ("1", "D")),
        *MLP_EXPERTS,
    ),
    fields={
        "num_experts": "E",
        "num_experts_per_tok": "top_k",
        "moe_intermediate_size": "M",
        "shared_expert_intermediate_size": "S",
    },
    constants={
        "norm_topk_prob": True,
        "qkv_bias": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    },
    router=Router("mlp.gate", scores="softmax", renormalises=True),
    block="mlp",
    experts="mlp.experts",
    stacked=STACKED,
    limits=(
        *LIMITS,
        (lambda _: True, "llama.cpp and mlx-lm ignore norm_topk_prob: they weigh the experts too little"),
        (lambda _: True, "llama.cpp computes NaN where the gate of the shared expert is zero, as it is here"),
    ),
)
