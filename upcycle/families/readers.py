"""What other programs do not compute of a config that is right in transformers: said when a conversion is planned.

Measured by `make interop`; docs/interop.md has the figures. These programs raise no error, they compute something else.
"""

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]

LIMITS: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (lambda config: config["hidden_act"] != "silu", "llama.cpp, mlx-lm and vLLM compute SiLU whatever hidden_act says"),
    (
        lambda config: _window(config) < config["max_position_embeddings"],
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
"""(whether it concerns a mixtral config, what to know)."""


def reader_limits(config: Config) -> tuple[str, ...]:
    """Return what to know about the readers of a model with this config, a sentence each; none for most models."""
    return tuple(text for concerns, text in LIMITS if concerns(config))


def _window(config: Config) -> float:
    window = config.get("sliding_window")
    return float("inf") if window is None else float(window)
