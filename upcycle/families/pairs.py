"""The pairs: which dense model becomes which mixture of experts, and where a pair departs from what its two sides say.

Facts checked against transformers' own classes by `tests/test_families.py`: the default of every carried field, and
the parity of each pair with random weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from upcycle.errors import UnsupportedError
from upcycle.families.dense import DENSE
from upcycle.families.dense.dense import Dense
from upcycle.families.rules import Reaches, Rule
from upcycle.families.targets import TARGETS
from upcycle.families.targets.target import Target


@dataclass(frozen=True)
class Pair:
    """A dense model, a mixture of experts that can compute the same, and the pair's overrides."""

    dense: Dense
    target: Target
    overrides: Mapping[str, Rule] = field(default_factory=dict)  # of the dense model's rules for config fields
    constants: Mapping[str, Any] = field(default_factory=dict)  # of the target's config

    @property
    def fields(self) -> Mapping[str, Rule]:
        """What becomes of each field of the dense config."""
        return {**self.dense.fields, **self.overrides}


_NO_WINDOW = {
    "sliding_window": Reaches("max_position_embeddings", "the target has no sliding window; --to full keeps it")
}

PAIRS: tuple[Pair, ...] = tuple(
    Pair(DENSE[dense], TARGETS[target], overrides)
    for dense, target, overrides in (
        ("llama", "mixtral", {}),
        ("mistral", "mixtral", {}),
        ("qwen3", "qwen3_moe", {}),
        ("phi3", "mixtral", {}),
        ("llama", "granitemoeshared", {}),
        ("llama", "qwen2_moe", {}),
        ("mistral", "granitemoeshared", _NO_WINDOW),
        ("mistral", "qwen2_moe", _NO_WINDOW),
    )
)
"""Of the pairs of one dense model, the first is what `convert` makes."""

CONVERTIBLE: tuple[str, ...] = tuple(dict.fromkeys(pair.dense.model_type for pair in PAIRS))
"""Types of dense models that have a pair."""


def pair_of(dense: str, target: str | None = None) -> Pair:
    """Return the pair of a dense model's type and a target's, or the first pair of the dense model.

    Raises UnsupportedError when there is no such pair.
    """
    of_dense = [pair for pair in PAIRS if pair.dense.model_type == dense]
    found = [pair for pair in of_dense if target in (None, pair.target.model_type)]
    if not found:
        bases = [pair.dense.model_type for pair in PAIRS if pair.target.model_type == target]
        raise UnsupportedError(
            f"{target} cannot be the mixture of such a model",
            found=dense,
            expected=f"one of {', '.join(bases)}",
            hint="--to full writes the model's own mixture of experts",
        )
    return found[0]
