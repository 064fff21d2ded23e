"""Qwen3-MoE: what qwen3 becomes."""

from upcycle.families.parts import Tensor
from upcycle.families.readers import Readers
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER, MLP_EITHER, MLP_ONLY, ROPE_LIMITS
from upcycle.families.targets.target import Router, Target

QWEN3_MOE = Target(
    model_type="qwen3_moe",
    model_class="Qwen3MoeForCausalLM",
    title="Qwen3-MoE",
    tensors=(
        *CARRIED,
        *BIASES,
        Tensor("norms", LAYER + "self_attn.q_norm.weight", ("H",), ("norm.q",)),
        Tensor("norms", LAYER + "self_attn.k_norm.weight", ("H",), ("norm.k",)),
        *MLP_EITHER,
    ),
    fields={"num_experts": "E", "num_local_experts": "E", "num_experts_per_tok": "top_k", "moe_intermediate_size": "M"},
    constants={
        "norm_topk_prob": True,  # the class's default leaves weights that do not sum to one
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    },
    router=Router(scores="softmax", renormalises=True),
    layer_choice=MLP_ONLY,
    limits=(
        (lambda config: config["hidden_act"] != "silu", "llama.cpp and vLLM compute SiLU whatever hidden_act says"),
        (
            lambda config: bool(config.get("attention_bias")),
            "llama.cpp and mlx-lm cannot load it with attention biases",
        ),
        *ROPE_LIMITS,
    ),
    readers=Readers(None, ("default", "linear", "yarn")),
)
