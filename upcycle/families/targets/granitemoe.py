"""GraniteMoe: a mixture whose attention may have biases, and whose multipliers may all be one."""

from upcycle.families.parts import Tensor
from upcycle.families.readers import Readers
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER
from upcycle.families.targets.target import SCALE, Limit, Router, Target

_SPARSE = LAYER + "block_sparse_moe."

LLAMA_CPP_REFUSES: tuple[Limit, ...] = (
    (
        lambda config: config["head_dim"] * config["num_attention_heads"] != config["hidden_size"],
        "llama.cpp refuses a head_dim other than hidden_size / heads",
    ),
    (
        lambda config: config["rope_parameters"]["rope_type"] == "llama3",
        "llama.cpp refuses rope scaling of the type llama3 in this architecture",
    ),
)
"""Measured by `make interop` on GraniteMoe and GraniteMoeShared."""

GRANITEMOE = Target(
    model_type="granitemoe",
    model_class="GraniteMoeForCausalLM",
    title="GraniteMoe",
    tensors=(
        *CARRIED,
        *BIASES,
        Tensor("router", _SPARSE + "router.layer.weight", ("E", "D"), ("router",)),
        Tensor("experts", _SPARSE + "input_linear.weight", ("E", "2M", "D"), ("expert.gate", "expert.up")),
        Tensor("experts", _SPARSE + "output_linear.weight", ("E", "D", "M"), ("expert.down",)),
    ),
    fields={
        "num_local_experts": "E",
        "num_experts_per_tok": "top_k",
        "intermediate_size": "M",
        "attention_multiplier": SCALE,
    },
    constants={
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_bias": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    },
    router=Router(scores="softmax", renormalises=True),
    limits=(
        (
            lambda config: config["hidden_act"] != "silu",
            "llama.cpp and mlx-lm compute SiLU whatever hidden_act says",
        ),
        *LLAMA_CPP_REFUSES,
        (
            lambda config: config["head_dim"] * config["num_attention_heads"] != config["hidden_size"],
            "mlx-lm refuses a head_dim other than hidden_size / heads",
        ),
        # read in mlx_lm/models/granitemoe.py, not run
        (
            lambda config: config["num_experts_per_tok"] == 1,
            "mlx-lm gives the experts' outputs to the wrong tokens where each token has one expert",
        ),
    ),
    readers=Readers(None, ("default", "linear", "yarn"), llama_cpp_any_head=False),
)
