"""Cohere2-MoE: what cohere2 becomes."""

from upcycle.families.targets.llama_shaped import BIASES, CARRIED, MLP_EITHER
from upcycle.families.targets.target import LayerChoice, Router, Target

COHERE2_MOE = Target(
    model_type="cohere2_moe",
    model_class="Cohere2MoeForCausalLM",
    title="Cohere2-MoE",
    tensors=(*(tensor for tensor in CARRIED if tensor.parts != ("norm.ffn",)), *BIASES, *MLP_EITHER),
    fields={
        "num_experts": "E",
        "num_experts_per_tok": "top_k",
        "intermediate_size": "M",
        "prefix_dense_intermediate_size": "F",
    },
    constants={
        "expert_selection_fn": "softmax",
        "norm_topk_prob": True,
        "num_shared_experts": 0,
        "shared_expert_combination_strategy": "average",
        "rms_norm_eps": None,  # else the norms would not subtract the mean
        # with its default of 1 a dense layer rotates even where it has no window
        "prefix_dense_sliding_window_pattern": 4,
        "output_router_logits": False,
    },
    router=Router(scores="softmax", renormalises=True),
    layer_choice=LayerChoice(
        "any of them",
        lambda sparse: {"mlp_layer_types": ["sparse" if experts else "dense" for experts in sparse]},
    ),
    limits=(
        (lambda _: True, "mlx-lm does not know cohere2_moe"),
        (
            lambda config: (config.get("sliding_window") or 0) >= 2**31 - 1,
            "llama.cpp computes something else with a sliding_window of 2147483647, which stands for none",
        ),
    ),
    stock_loss=False,
)
