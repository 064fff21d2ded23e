"""Qwen2-MoE: the dense FFN once, as a shared expert behind a sigmoid gate, and small experts beside it.

`y = sigmoid(g x) FFN(x) + sum_i w_i D_i(act(G_i x) * U_i x)`; a gate of zeros counts the shared expert half, so its
down projection is doubled. With whole experts the shared one is narrow and all zero: the class always has one, and of
width 0 torch warns whenever the model is loaded.
"""

from dataclasses import replace

from upcycle.families.parts import SPARSE, Tensor
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER, LIMITS, MLP_EITHER, MLP_ONLY
from upcycle.families.targets.target import Router, Target

_SHARED = LAYER + "mlp.shared_expert."

QWEN2_MOE = Target(
    model_type="qwen2_moe",
    model_class="Qwen2MoeForCausalLM",
    title="Qwen2-MoE",
    tensors=(
        *CARRIED,
        *(replace(bias, when=None) for bias in BIASES if bias.parts != ("attention.o.bias",)),
        Tensor("shared", _SHARED + "gate_proj.weight", ("S", "D"), ("shared.gate",), fill=0, when=SPARSE),
        Tensor("shared", _SHARED + "up_proj.weight", ("S", "D"), ("shared.up",), fill=0, when=SPARSE),
        # the shared expert counts sigmoid(gate) = sigmoid(0) = 1/2
        Tensor("shared", _SHARED + "down_proj.weight", ("D", "S"), ("shared.down",), 2.0, fill=0, when=SPARSE),
        Tensor("shared", LAYER + "mlp.shared_expert_gate.weight", ("1", "D"), when=SPARSE),
        *MLP_EITHER,
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
    router=Router(scores="softmax", renormalises=True),
    layer_choice=MLP_ONLY,
    idle_width=32,  # rows that other programs quantise and divide over devices
    limits=(
        *LIMITS,
        (lambda _: True, "llama.cpp and mlx-lm ignore norm_topk_prob: they weigh the experts too little"),
        (lambda _: True, "llama.cpp computes NaN where the gate of the shared expert is zero, as it is here"),
        (
            lambda config: bool(config["tie_word_embeddings"]),
            "llama.cpp and mlx-lm cannot load it with tied embeddings",
        ),
    ),
)
