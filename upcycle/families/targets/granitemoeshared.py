"""GraniteMoeShared: the dense FFN once, as a shared expert without a gate, and small experts beside it.

`y = FFN(x) + sum_i w_i D_i(act(G_i x) * U_i x)`, which is what bottleneck adapter experts compute.
"""

from upcycle.families.parts import Tensor
from upcycle.families.readers import Readers
from upcycle.families.targets.llama_shaped import CARRIED, LAYER, LIMITS
from upcycle.families.targets.target import Router, Target

_SPARSE = LAYER + "block_sparse_moe."

GRANITEMOESHARED = Target(
    model_type="granitemoeshared",
    model_class="GraniteMoeSharedForCausalLM",
    title="GraniteMoeShared",
    tensors=(
        *CARRIED,
        Tensor("shared", LAYER + "shared_mlp.input_linear.weight", ("2S", "D"), ("shared.gate", "shared.up")),
        Tensor("shared", LAYER + "shared_mlp.output_linear.weight", ("D", "S"), ("shared.down",)),
        Tensor("router", _SPARSE + "router.layer.weight", ("E", "D"), ("router",)),
        Tensor("experts", _SPARSE + "input_linear.weight", ("E", "2M", "D"), ("expert.gate", "expert.up")),
        Tensor("experts", _SPARSE + "output_linear.weight", ("E", "D", "M"), ("expert.down",)),
    ),
    fields={
        "num_local_experts": "E",
        "num_experts_per_tok": "top_k",
        "intermediate_size": "M",
        "shared_intermediate_size": "S",
        "attention_multiplier": "scale",
    },
    constants={
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_bias": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    },
    router=Router("block_sparse_moe.router", scores="softmax", renormalises=True),
    block="block_sparse_moe",
    experts="block_sparse_moe",
    stacked={},
    limits=(
        *LIMITS,
        (lambda _: True, "mlx-lm has no granitemoeshared"),
        (
            lambda config: config["head_dim"] * config["num_attention_heads"] != config["hidden_size"],
            "llama.cpp refuses a head_dim other than hidden_size / heads",
        ),
        (
            lambda config: config["rope_parameters"]["rope_type"] == "llama3",
            "llama.cpp refuses rope scaling of the type llama3 in this architecture",
        ),
    ),
    readers=Readers(None, ("default", "linear", "yarn"), llama_cpp_any_head=False),
)
