"""The one language in which dense models and mixtures of experts name their tensors' parts.

A **part** is a matrix or vector by its role in a decoder: `embeddings`, `attention.q`, `norm.ffn`, `head`, `gate`,
`up`, `down` and so on. A dense model says where each part lies (`Place`); a mixture says which parts each of its
tensors is made of (`Tensor`). Experts, shared experts and routers are parts of mixtures only: `expert.gate`,
`shared.down`, `router`.

Shapes are written in letters, resolved from the config: V vocabulary, D hidden, F the dense FFN's neurons, Q query
width (heads x head_dim), K key/value width, H head_dim, E experts, M neurons of an expert, S neurons of the shared
expert, digits for themselves; `2F` is twice F and `Q+2K` a sum. `{layer}` and `{expert}` in a name stand for numbers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

ROLES = ("embeddings", "attention", "router", "shared", "experts", "norms", "head")
"""The kinds of tensors that a plan counts, in the order of its table."""

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
class Place:
    """Where a part of a dense model lies: a tensor of its checkpoint, or some rows of one."""

    tensor: str
    shape: tuple[str, ...]  # of the whole tensor
    rows: tuple[str, str] | None = None  # the first row and the one after the last; None: all of them

    @property
    def per_layer(self) -> bool:
        """Whether there is one for every layer."""
        return "{layer}" in self.tensor


@dataclass(frozen=True, slots=True)
class Tensor:
    """One kind of tensor of a mixture of experts, and the parts that lie in it one below the other.

    In a name without `{expert}`, parts of experts come for each expert in turn. A tensor without parts is zeros.
    """

    role: str  # one of ROLES
    name: str  # as on disk
    shape: tuple[str, ...]
    parts: tuple[str, ...] = ()
    factor: float = 1.0  # that the parts are multiplied by

    @property
    def per_layer(self) -> bool:
        """Whether there is one for every layer."""
        return "{layer}" in self.name

    @property
    def per_expert(self) -> bool:
        """Whether there is one for every expert."""
        return "{expert}" in self.name
