"""FlexOlmo: what OLMo 2 becomes, and OLMo 3 without sliding windows."""

from upcycle.families.parts import Tensor
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER, MLP_EXPERTS
from upcycle.families.targets.target import Router, Target

FLEX_OLMO = Target(
    model_type="flex_olmo",
    model_class="FlexOlmoForCausalLM",
    title="FlexOlmo",
    tensors=(
        *(tensor for tensor in CARRIED if tensor.parts[0] not in ("norm.attention", "norm.ffn")),
        *BIASES,
        Tensor("norms", LAYER + "self_attn.q_norm.weight", ("Q",), ("norm.q",)),
        Tensor("norms", LAYER + "self_attn.k_norm.weight", ("K",), ("norm.k",)),
        Tensor("norms", LAYER + "post_attention_layernorm.weight", ("D",), ("norm.after_attention",)),
        Tensor("norms", LAYER + "post_feedforward_layernorm.weight", ("D",), ("norm.after_ffn",)),
        *MLP_EXPERTS,
    ),
    fields={"num_experts": "E", "num_experts_per_tok": "top_k", "intermediate_size": "M"},
    constants={
        "norm_topk_prob": True,  # the class's default leaves weights that do not sum to one
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
    },
    router=Router(scores="softmax", renormalises=True),
    limits=((lambda _: True, "llama.cpp's converter and mlx-lm do not know flex_olmo"),),
)
