"""Granite 4 with experts: what a Granite 4 without them becomes.

The stock class has a shared expert in every layer, `y = S(x) + sum_i w_i E_i(x)`; with whole experts it is narrow and
all zero.
"""

from upcycle.families.dense.granitemoehybrid import GRANITEMOEHYBRID_DENSE
from upcycle.families.parts import HEAD, MATRICES, Tensor
from upcycle.families.targets.granitemoe import GRANITEMOE
from upcycle.families.targets.llama_shaped import LAYER
from upcycle.families.targets.target import Target

_SPARSE = LAYER + "block_sparse_moe."
_NORMS = ("norm.mamba", "norm.attention", "norm.ffn", "norm.final")
_ROLES = {"embeddings": "embeddings", HEAD: "head", **dict.fromkeys(_NORMS, "norms")}

GRANITEMOEHYBRID = Target(
    model_type="granitemoehybrid",
    model_class="GraniteMoeHybridForCausalLM",
    title="Granite 4 MoE",
    tensors=(
        # all but the FFN is called and stands as in the dense model
        *(
            Tensor(_ROLES.get(part, "attention"), place.tensor, place.shape, (part,), when=place.when)
            for part, place in GRANITEMOEHYBRID_DENSE.parts.items()
            if part not in MATRICES
        ),
        Tensor("shared", LAYER + "shared_mlp.input_linear.weight", ("2S", "D"), ("shared.gate", "shared.up"), fill=0),
        Tensor("shared", LAYER + "shared_mlp.output_linear.weight", ("D", "S"), ("shared.down",), fill=0),
        Tensor("router", _SPARSE + "router.layer.weight", ("E", "D"), ("router",)),
        Tensor("experts", _SPARSE + "input_linear.weight", ("E", "2M", "D"), ("expert.gate", "expert.up")),
        Tensor("experts", _SPARSE + "output_linear.weight", ("E", "D", "M"), ("expert.down",)),
    ),
    fields={
        "num_local_experts": "E",
        "num_experts_per_tok": "top_k",
        "intermediate_size": "M",
        "shared_intermediate_size": "S",
    },
    constants=GRANITEMOE.constants,
    router=GRANITEMOE.router,
    limits=(
        (
            lambda config: "linear_attention" in (config.get("layer_types") or ()),
            "llama.cpp and mlx-lm know the kinds of layers only by the names mamba and attention",
        ),
        (lambda config: config.get("position_embedding_type") == "rope", "llama.cpp does not rotate"),
        (lambda config: config.get("mamba_n_groups", 1) > 1, "mlx-lm is wrong with more than one of mamba_n_groups"),
    ),
    idle_width=32,  # of width 0 torch warns whenever the model is loaded
)
