"""Tensors that mixtures of experts share with one another, and with the llama whose attention and norms they keep."""

from dataclasses import replace

from upcycle.families.parts import DENSE, SPARSE, Tensor, When
from upcycle.families.targets.target import Config, LayerChoice, Limit

LAYER = "model.layers.{layer}."

ATTENTION = tuple(
    Tensor("attention", f"{LAYER}self_attn.{letter}_proj.weight", shape, (f"attention.{letter}",))
    for letter, shape in (("q", ("Q", "D")), ("k", ("K", "D")), ("v", ("K", "D")), ("o", ("D", "Q")))
)

_BIASED = When("attention_bias", (True,))

BIASES = tuple(
    Tensor("attention", f"{LAYER}self_attn.{name}_proj.bias", (width,), (f"attention.{name}.bias",), 1.0, 0, _BIASED)
    for name, width in (("q", "Q"), ("k", "K"), ("v", "K"), ("o", "D"))
)
"""Of all four projections, where `attention_bias` says so; those that the dense model lacks are zero."""

CARRIED = (
    Tensor("embeddings", "model.embed_tokens.weight", ("V", "D"), ("embeddings",)),
    *ATTENTION,
    Tensor("norms", LAYER + "input_layernorm.weight", ("D",), ("norm.attention",)),
    Tensor("norms", LAYER + "post_attention_layernorm.weight", ("D",), ("norm.ffn",)),
    Tensor("norms", "model.norm.weight", ("D",), ("norm.final",)),
    Tensor("head", "lm_head.weight", ("V", "D"), ("head",)),
)
"""Everything but the FFN."""


MLP_EXPERTS = (
    Tensor("router", LAYER + "mlp.gate.weight", ("E", "D"), ("router",)),
    Tensor("experts", LAYER + "mlp.experts.{expert}.gate_proj.weight", ("M", "D"), ("expert.gate",)),
    Tensor("experts", LAYER + "mlp.experts.{expert}.up_proj.weight", ("M", "D"), ("expert.up",)),
    Tensor("experts", LAYER + "mlp.experts.{expert}.down_proj.weight", ("D", "M"), ("expert.down",)),
)
"""Router and experts, named as the Qwen mixtures name them on disk."""

MLP_DENSE = tuple(
    Tensor("ffn", f"{LAYER}mlp.{name}_proj.weight", shape, (name,), when=DENSE)
    for name, shape in (("gate", ("F", "D")), ("up", ("F", "D")), ("down", ("D", "F")))
)
"""The FFN of a layer that stays dense."""

MLP_EITHER = (*(replace(tensor, when=SPARSE) for tensor in MLP_EXPERTS), *MLP_DENSE)
"""A layer's FFN, where layers may be sparse or dense."""

MLP_ONLY = LayerChoice(
    "any of them",
    lambda sparse: {"mlp_only_layers": [layer for layer, experts in enumerate(sparse) if not experts]},
)
"""The Qwen mixtures list the layers that stay dense."""


def first_dense(field: str) -> LayerChoice:
    """Return the choice of a config that counts the dense layers at the beginning in `field`."""

    def fields(sparse: tuple[bool, ...]) -> dict[str, int] | None:
        dense = sparse.index(True)
        return {field: dense} if all(sparse[dense:]) else None

    return LayerChoice("the last ones, as last:8", fields)


def window(config: Config) -> float:
    """Return the sliding window of a config in tokens; infinite without one."""
    found = config.get("sliding_window")
    return float("inf") if found is None else float(found)


def rope_type(config: Config) -> str:
    """Return the type of rope scaling of a config."""
    return str((config.get("rope_parameters") or {}).get("rope_type", "default"))


ROPE_LIMITS: tuple[Limit, ...] = (
    (lambda config: rope_type(config) == "llama3", "llama.cpp ignores rope scaling of the type llama3"),
    (lambda config: rope_type(config) != "default", "mlx-lm ignores rope scaling"),
)
"""Measured by `make interop` on Qwen3-MoE, ERNIE 4.5 and LFM2; llama.cpp agrees on linear and yarn there."""

NEEDS_SHARED: Limit = (
    lambda config: not config["n_shared_experts"],
    "llama.cpp and mlx-lm cannot run it with a shared expert of width zero",
)
"""Measured by `make interop` on GLM-4-MoE, dots.llm1 and DeepSeek-V3; docs/interop.md has their messages."""

LIMITS: tuple[Limit, ...] = (
    (lambda config: config["hidden_act"] != "silu", "llama.cpp, mlx-lm and vLLM compute SiLU whatever hidden_act says"),
    (
        lambda config: window(config) < config["max_position_embeddings"],
        "llama.cpp and mlx-lm ignore sliding_window: right up to that many tokens",
    ),
    (
        lambda config: config.get("rope_parameters", {}).get("rope_type", "default") != "default",
        "mlx-lm ignores rope scaling",
    ),
    (
        lambda config: (
            "head_dim" in config and config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]
        ),
        "mlx-lm refuses a head_dim other than hidden_size / heads",
    ),
)
"""Measured by `make interop` on Mixtral outputs; docs/interop.md has the figures. No reader raises an error here."""
