"""The pairs: which dense model becomes which mixture of experts, and where a pair departs from what its two sides say.

Facts checked against transformers' own classes by `tests/families`: the default of every carried field, and the parity
of each pair with random weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from upcycle.errors import UnsupportedError
from upcycle.families.dense.dense import Dense
from upcycle.families.dense.llama import LLAMA
from upcycle.families.dense.mistral import MISTRAL
from upcycle.families.dense.phi3 import PHI3
from upcycle.families.dense.qwen3 import QWEN3
from upcycle.families.rules import Reaches, Rule
from upcycle.families.targets.granitemoeshared import GRANITEMOESHARED
from upcycle.families.targets.mixtral import MIXTRAL
from upcycle.families.targets.qwen2_moe import QWEN2_MOE
from upcycle.families.targets.qwen3_moe import QWEN3_MOE
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

PAIRS: tuple[Pair, ...] = (
    Pair(LLAMA, MIXTRAL),
    Pair(MISTRAL, MIXTRAL),
    Pair(QWEN3, QWEN3_MOE),
    Pair(PHI3, MIXTRAL),
    Pair(LLAMA, GRANITEMOESHARED),
    Pair(LLAMA, QWEN2_MOE),
    Pair(MISTRAL, GRANITEMOESHARED, _NO_WINDOW),
    Pair(MISTRAL, QWEN2_MOE, _NO_WINDOW),
)
"""Of the pairs of one dense model, the first is what `convert` makes."""

DENSE: Mapping[str, Dense] = MappingProxyType({pair.dense.model_type: pair.dense for pair in PAIRS})
"""Dense models that have a pair, by `model_type`."""

TARGETS: Mapping[str, Target] = MappingProxyType({pair.target.model_type: pair.target for pair in PAIRS})
"""Mixtures of experts that have a pair, by `model_type`."""

DEFAULT_COMPACT = GRANITEMOESHARED.model_type
"""What `merge --to compact` writes unless another is named: other readers are right about it, too."""


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
