"""Hunyuan-MoE: what hunyuan_v1_dense becomes.

The stock class adds a shared expert as wide as the others to every layer, `y = S(x) + sum_i w_i E_i(x)`.
"""

from upcycle.families.parts import Tensor
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER, MLP_EXPERTS
from upcycle.families.targets.target import Router, Target

_SHARED = LAYER + "mlp.shared_mlp."

HUNYUAN_V1_MOE = Target(
    model_type="hunyuan_v1_moe",
    model_class="HunYuanMoEV1ForCausalLM",
    title="Hunyuan-MoE",
    tensors=(
        *CARRIED,
        *BIASES,
        Tensor("norms", LAYER + "self_attn.query_layernorm.weight", ("H",), ("norm.q",)),
        Tensor("norms", LAYER + "self_attn.key_layernorm.weight", ("H",), ("norm.k",)),
        Tensor("router", LAYER + "mlp.gate.wg.weight", ("E", "D"), ("router",)),
        *MLP_EXPERTS[1:],
        Tensor("shared", _SHARED + "gate_proj.weight", ("S", "D"), ("shared.gate",)),
        Tensor("shared", _SHARED + "up_proj.weight", ("S", "D"), ("shared.up",)),
        Tensor("shared", _SHARED + "down_proj.weight", ("D", "S"), ("shared.down",)),
    ),
    fields={"num_experts": "E", "moe_topk": "top_k", "num_experts_per_tok": "top_k", "intermediate_size": "M"},
    constants={"output_router_logits": False},
    shared_like="one",
    always_shared=True,
    router=Router(scores="softmax", renormalises=True),
    limits=(
        (lambda _: True, "mlx-lm does not know hunyuan_v1_moe"),
        (lambda _: True, "llama.cpp's converter refuses its config: it wants moe_intermediate_size, a list"),
    ),
    stock_loss=False,
)
