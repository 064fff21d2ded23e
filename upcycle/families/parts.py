"""The one language in which dense models and mixtures of experts name their tensors' parts.

A **part** is a matrix or vector by its role in a decoder: `embeddings`, `attention.q`, `norm.ffn`, `head`, `gate`,
`up`, `down` and so on. A dense model says where each part lies (`Place`); a mixture says which parts each of its
tensors is made of (`Tensor`). Experts, shared experts and routers are parts of mixtures only: `expert.gate`,
`shared.down`, `router`.

Shapes are written in letters, resolved from the config: V vocabulary, D hidden, F the dense FFN's neurons, Q query
width (heads x head_dim), K key/value width, H head_dim, E experts, M neurons of an expert, S neurons of the shared
expert, digits for themselves; `2F` is twice F and `Q+2K` a sum. A dense model may have letters of its own, and letters
that differ from layer to layer. `{layer}` and `{expert}` in a name stand for numbers.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("embeddings", "attention", "router", "shared", "experts", "ffn", "norms", "head", "other")
"""The kinds of tensors that a plan counts, in the order of its table; other: what is around a language model."""

HEAD = "head"
"""The part that a checkpoint with tied embeddings may lack."""

MATRICES = ("gate", "up", "down")
"""Of a gated FFN, `W_down(act(W_gate x) * (W_up x))`; one without a gate has the other two."""

_TERM = re.compile(r"(\d*)([A-Z]?)")


def dimension(expression: str, sizes: Mapping[str, int]) -> int:
    """Return the number that `expression`, such as `Q+2K`, stands for."""
    total = 0
    for term in expression.split("+"):
        found = _TERM.fullmatch(term)
        if found is None or not term:
            raise ValueError(f"{expression!r} is no dimension")
        count, letter = found[1], found[2]
        total += int(count or 1) * (sizes[letter] if letter else 1)
    return total


@dataclass(frozen=True, slots=True)
class When:
    """A tensor is there only where a config field has one of some values; where the field is a list, layer by layer."""

    field: str
    values: tuple[Any, ...]

    def holds(self, config: Mapping[str, Any], layer: int) -> bool:
        """Whether the tensor is there, in this layer."""
        found = config.get(self.field)
        if isinstance(found, list | tuple):
            found = found[layer] if layer < len(found) else None
        return found in self.values


@dataclass(frozen=True, slots=True)
class Where:
    """A tensor is there only in layers for which a function of the config and the layer's number says so."""

    holds: Callable[[Mapping[str, Any], int], bool]


SPARSE = When("ffn", ("sparse",))
"""Of a mixture's tensor: in layers with experts. `ffn` is no field of a config; a plan knows it."""

DENSE = When("ffn", ("dense",))
"""Of a mixture's tensor: in layers that keep the dense FFN."""

SHARED = When("shared", (True,))
"""Of a mixture's tensor: where there is a shared expert. `shared` is no field of a config; a plan knows it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a dense model lies: a tensor of its checkpoint, or some rows of one."""

    tensor: str
    shape: tuple[str, ...]  # of the whole tensor
    rows: tuple[str, str] | None = None  # the first row and the one after the last; None: all of them
    when: When | Where | None = None  # by the dense config; None: always

    @property
    def per_layer(self) -> bool:
        """Whether there is one for every layer."""
        return "{layer}" in self.tensor


@dataclass(frozen=True, slots=True)
class Tensor:
    """One kind of tensor of a mixture of experts, and the parts that lie in it one below the other.

    In a name without `{expert}`, parts of experts come for each expert in turn. A tensor without parts, or whose only
    part the dense model lacks, is filled with one value.
    """

    role: str  # one of ROLES
    name: str  # as on disk
    shape: tuple[str, ...]
    parts: tuple[str, ...] = ()
    factor: float = 1.0  # that the parts are multiplied by
    fill: float | None = None  # the value where a part is not there; None: zero without parts, else it must be
    when: When | Where | None = None  # by the mixture's config, and by SPARSE, DENSE and SHARED; None: always

    @property
    def per_layer(self) -> bool:
        """Whether there is one for every layer."""
        return "{layer}" in self.name

    @property
    def per_expert(self) -> bool:
        """Whether there is one for every expert."""
        return "{expert}" in self.name
