"""Tensors that mixtures of experts share with one another, and with the llama whose attention and norms they keep."""

from upcycle.families.parts import Tensor
from upcycle.families.targets.target import Config, Limit

LAYER = "model.layers.{layer}."

ATTENTION = tuple(
    Tensor("attention", f"{LAYER}self_attn.{letter}_proj.weight", shape, (f"attention.{letter}",))
    for letter, shape in (("q", ("Q", "D")), ("k", ("K", "D")), ("v", ("K", "D")), ("o", ("D", "Q")))
)

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

STACKED = {
    "mlp.gate.weight": ("router",),
    "mlp.experts.gate_up_proj": ("expert.gate", "expert.up"),
    "mlp.experts.down_proj": ("expert.down",),
}
"""Router and experts of a layer as most stock classes hold them in memory."""


def window(config: Config) -> float:
    """Return the sliding window of a config in tokens; infinite without one."""
    found = config.get("sliding_window")
    return float("inf") if found is None else float(found)


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
