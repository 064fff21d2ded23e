"""Mixtures of experts whose shared expert is a dense model's whole FFN and whose routed experts are as small as they
were trained: what bottleneck adapter experts become.

`y = FFN(x) + s sum_i w_i D_i(act(G_i x) * U_i x)` is computed by the stock classes; these rows say under which names.
What is no FFN keeps its dense name. Shapes are written as in `family`, and M is the width of a small expert.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from upcycle.errors import UnsupportedError
from upcycle.families.match import Match


@dataclass(frozen=True, slots=True)
class Fused:
    """One kind of tensor of the output and the matrices that it is made of, one below the other.

    `parts` are `ffn.gate`, `ffn.up`, `ffn.down` of the dense model, `expert.gate` ... of the adapter, or `router`;
    those of an expert come for each expert in turn when the name has no `{expert}`. Without parts it is zeros.
    """

    role: str  # one of family.ROLES
    target: str
    shape: tuple[str, ...]
    parts: tuple[str, ...] = ()
    factor: float = 1.0


@dataclass(frozen=True)
class Compact:
    """An architecture with a shared expert of a width of its own."""

    moe: str  # model_type
    moe_class: str
    bases: tuple[str, ...]  # model types of dense models that it can be the mixture of
    rows: tuple[Fused, ...]
    fields: Mapping[str, str]  # config field -> a letter of the shapes, "top_k", or "scale" (of the attention scores)
    constants: Mapping[str, Any]
    limits: tuple[tuple[Callable[[Mapping[str, Any]], bool], str], ...]  # as in `families.readers`

    def reader_limits(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what other programs do not compute of a model with this config of the output, a sentence each."""
        return tuple(text for concerns, text in self.limits if concerns(config))

    def config(self, matched: Match, quantities: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config of the output: what `matched` carries over, and the fields of these experts.

        Raises UnsupportedError for a base that this architecture cannot compute.
        """
        if matched.family.dense not in self.bases:
            raise UnsupportedError(
                f"{self.moe} cannot be the mixture of such a model",
                found=matched.family.dense,
                expected=f"one of {', '.join(self.bases)}",
                hint="--to full writes the model's own mixture of experts",
            )
        config = {name: value for name, value in matched.config.items() if name != "sliding_window"}
        window, longest = matched.config.get("sliding_window"), config["max_position_embeddings"]
        if window is not None and window < longest:
            raise UnsupportedError(
                f"{self.moe} has no sliding window",
                found=f"sliding_window {window} of {longest} positions",
                hint="--to full keeps it",
            )
        chosen = {field: quantities[name] for field, name in self.fields.items()}
        return {**config, "architectures": [self.moe_class], "model_type": self.moe, **chosen, **self.constants}


_LAYER = "model.layers.{layer}."
_SPARSE = _LAYER + "block_sparse_moe."
_MLP = _LAYER + "mlp."

_GRANITE = Compact(
    moe="granitemoeshared",
    moe_class="GraniteMoeSharedForCausalLM",
    bases=("llama", "mistral"),
    rows=(
        Fused("shared", _LAYER + "shared_mlp.input_linear.weight", ("2F", "D"), ("ffn.gate", "ffn.up")),
        Fused("shared", _LAYER + "shared_mlp.output_linear.weight", ("D", "F"), ("ffn.down",)),
        Fused("router", _SPARSE + "router.layer.weight", ("E", "D"), ("router",)),
        Fused("experts", _SPARSE + "input_linear.weight", ("E", "2M", "D"), ("expert.gate", "expert.up")),
        Fused("experts", _SPARSE + "output_linear.weight", ("E", "D", "M"), ("expert.down",)),
    ),
    fields={
        "num_local_experts": "E",
        "num_experts_per_tok": "top_k",
        "intermediate_size": "M",
        "shared_intermediate_size": "F",
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
    limits=(
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
)

_QWEN = Compact(
    moe="qwen2_moe",
    moe_class="Qwen2MoeForCausalLM",
    bases=("llama", "mistral"),
    rows=(
        *(
            Fused("attention", f"{_LAYER}self_attn.{name}_proj.bias", (letter,))
            for name, letter in (("q", "Q"), ("k", "K"), ("v", "K"))
        ),
        Fused("shared", _MLP + "shared_expert.gate_proj.weight", ("F", "D"), ("ffn.gate",)),
        Fused("shared", _MLP + "shared_expert.up_proj.weight", ("F", "D"), ("ffn.up",)),
        # the shared expert counts sigmoid(gate) = sigmoid(0) = 1/2
        Fused("shared", _MLP + "shared_expert.down_proj.weight", ("D", "F"), ("ffn.down",), factor=2.0),
        Fused("shared", _MLP + "shared_expert_gate.weight", ("1", "D")),
        Fused("router", _MLP + "gate.weight", ("E", "D"), ("router",)),
        Fused("experts", _MLP + "experts.{expert}.gate_proj.weight", ("M", "D"), ("expert.gate",)),
        Fused("experts", _MLP + "experts.{expert}.up_proj.weight", ("M", "D"), ("expert.up",)),
        Fused("experts", _MLP + "experts.{expert}.down_proj.weight", ("D", "M"), ("expert.down",)),
    ),
    fields={
        "num_experts": "E",
        "num_experts_per_tok": "top_k",
        "moe_intermediate_size": "M",
        "shared_expert_intermediate_size": "F",
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
    limits=(
        (lambda _: True, "llama.cpp and mlx-lm ignore norm_topk_prob: they weigh the experts too little"),
        (lambda _: True, "llama.cpp computes NaN where the gate of the shared expert is zero, as it is here"),
    ),
)

COMPACT: Mapping[str, Compact] = MappingProxyType({each.moe: each for each in (_GRANITE, _QWEN)})
"""By the target's `model_type`."""

DEFAULT_TARGET = "granitemoeshared"
"""Other readers are right about it, too."""
