"""The pairs: which dense model becomes which mixture of experts, and where a pair departs from what its two sides say.

Facts checked against transformers' own classes by `tests/families`: the default of every carried field, and the parity
of each pair with random weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from types import MappingProxyType
from typing import Any, Literal

from upcycle.errors import UnsupportedError
from upcycle.families.dense.cohere2 import COHERE2
from upcycle.families.dense.dense import Dense
from upcycle.families.dense.gemma4_text import GEMMA4_TEXT
from upcycle.families.dense.hunyuan_v1_dense import HUNYUAN_V1_DENSE
from upcycle.families.dense.lfm2 import LFM2
from upcycle.families.dense.llama import LLAMA
from upcycle.families.dense.mistral import MISTRAL
from upcycle.families.dense.phi3 import PHI3
from upcycle.families.dense.qwen3 import QWEN3
from upcycle.families.dense.qwen3_5_text import QWEN3_5_TEXT
from upcycle.families.rules import Carry, Reaches, Rule
from upcycle.families.targets.cohere2_moe import COHERE2_MOE
from upcycle.families.targets.gemma4_text import GEMMA4_TEXT_MOE
from upcycle.families.targets.granitemoe import GRANITEMOE
from upcycle.families.targets.granitemoeshared import GRANITEMOESHARED
from upcycle.families.targets.hunyuan_v1_moe import HUNYUAN_V1_MOE
from upcycle.families.targets.lfm2_moe import LFM2_MOE
from upcycle.families.targets.mixtral import MIXTRAL
from upcycle.families.targets.qwen2_moe import QWEN2_MOE
from upcycle.families.targets.qwen3_5_moe_text import QWEN3_5_MOE_TEXT
from upcycle.families.targets.qwen3_moe import QWEN3_MOE
from upcycle.families.targets.target import Target


@dataclass(frozen=True, slots=True)
class Change:
    """What a part's values become on their way: `factor * sqrt(size) * (W + add)`."""

    add: float = 0.0
    factor: float = 1.0
    root: str | None = None  # a letter of `families.parts`; None: a size of 1

    def scale(self, sizes: Mapping[str, int]) -> float:
        """Return what `W + add` is multiplied by."""
        return self.factor * (sqrt(sizes[self.root]) if self.root else 1.0)


Form = Literal["full", "compact"]
"""full: every expert is a whole FFN; compact: the FFN once, as a shared expert, and small experts beside it."""


@dataclass(frozen=True)
class Pair:
    """A dense model, a mixture of experts that can compute the same, and the pair's overrides."""

    dense: Dense
    target: Target
    overrides: Mapping[str, Rule] = field(default_factory=dict)  # of the dense model's rules for config fields
    constants: Mapping[str, Any] = field(default_factory=dict)  # of the target's config
    changes: Mapping[str, Change] = field(default_factory=dict)  # of parts, by their names
    forms: tuple[Form, ...] = ("full",)

    @property
    def fields(self) -> Mapping[str, Rule]:
        """What becomes of each field of the dense config."""
        return {**self.dense.fields, **self.overrides}


_NO_WINDOW = {
    "sliding_window": Reaches("max_position_embeddings", "the target has no sliding window; --to full keeps it")
}

_BIASED = {"attention_bias": Carry(False, "flag")}

_PLAIN_GRANITE = {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0}

PAIRS: tuple[Pair, ...] = (
    Pair(LLAMA, MIXTRAL),
    Pair(MISTRAL, MIXTRAL),
    Pair(QWEN3, QWEN3_MOE),
    Pair(PHI3, MIXTRAL),
    Pair(GEMMA4_TEXT, GEMMA4_TEXT_MOE),
    Pair(COHERE2, COHERE2_MOE),
    Pair(HUNYUAN_V1_DENSE, HUNYUAN_V1_MOE),
    Pair(LFM2, LFM2_MOE),
    Pair(QWEN3_5_TEXT, QWEN3_5_MOE_TEXT),
    Pair(LLAMA, GRANITEMOE, _BIASED, _PLAIN_GRANITE),
    Pair(LLAMA, GRANITEMOESHARED, forms=("compact",)),
    Pair(LLAMA, QWEN2_MOE, forms=("compact",)),
    Pair(MISTRAL, GRANITEMOESHARED, _NO_WINDOW, forms=("compact",)),
    Pair(MISTRAL, QWEN2_MOE, _NO_WINDOW, forms=("compact",)),
)
"""Of the full pairs of one dense model, `convert` makes the first whose target can express the config."""

DENSE: Mapping[str, Dense] = MappingProxyType({pair.dense.model_type: pair.dense for pair in PAIRS})
"""Dense models that have a pair, by `model_type`."""

TARGETS: Mapping[str, Target] = MappingProxyType({pair.target.model_type: pair.target for pair in PAIRS})
"""Mixtures of experts that have a pair, by `model_type`."""

DEFAULT_COMPACT = GRANITEMOESHARED.model_type
"""What `merge --to compact` writes unless another is named: other readers are right about it, too."""


def pairs_of(dense: str, target: str | None = None, form: Form = "full") -> tuple[Pair, ...]:
    """Return the pairs of a dense model's type and form, in their order: all of them, or the one of a target's type.

    Raises UnsupportedError when there is none.
    """
    of_dense = [pair for pair in PAIRS if pair.dense.model_type == dense and form in pair.forms]
    found = tuple(pair for pair in of_dense if target in (None, pair.target.model_type))
    if found:
        return found
    of_target = [pair.dense.model_type for pair in PAIRS if pair.target.model_type == target and form in pair.forms]
    known = [pair.target.model_type for pair in of_dense]
    raise UnsupportedError(
        f"{target} cannot be the {'' if form == 'full' else 'compact '}mixture of such a model",
        found=dense,
        expected=f"one of {', '.join(of_target)}" if of_target else None,
        hint=f"of {dense} can be made: {', '.join(known)}"
        if known
        else "--to full writes the model's own mixture of experts",
    )


def pair_of(dense: str, target: str | None = None, form: Form = "full") -> Pair:
    """Return the first of `pairs_of`."""
    return pairs_of(dense, target, form)[0]
