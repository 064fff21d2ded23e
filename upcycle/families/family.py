"""What a row of the families table is made of.

Shapes are written in letters, resolved from the config: V vocabulary, D hidden, F intermediate (FFN), Q query width
(heads x head_dim), K key/value width, E experts. `{layer}` and `{expert}` in a name stand for numbers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("embeddings", "attention", "router", "shared", "experts", "norms", "head")
"""The parts that a plan counts, in the order of its table."""


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One kind of tensor of the output and the dense tensor it comes from."""

    role: str  # one of ROLES
    target: str  # canonical name on disk in the MoE
    shape: tuple[str, ...]
    source: str | None = None  # name in the dense checkpoint; None: the router, which is drawn
    tied_optional: bool = False  # may be absent when the embeddings are tied

    @property
    def per_layer(self) -> bool:
        """Whether there is one for every layer."""
        return "{layer}" in self.target

    @property
    def per_expert(self) -> bool:
        """Whether there is one for every expert."""
        return "{expert}" in self.target


@dataclass(frozen=True, slots=True)
class Carry:
    """A config field that the target has too; written even when absent, since the classes' defaults differ."""

    default: Any  # of the dense class
    kind: str = "any"  # size, number, number or null, flag, known activation or any: what a value is


@dataclass(frozen=True, slots=True)
class Keep:
    """A field without influence on what the model computes; kept as it is when present."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A field left out of the output."""

    why: str


@dataclass(frozen=True, slots=True)
class Only:
    """A field that the target lacks; anything but these values (or null) is refused."""

    values: tuple[Any, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Uniform:
    """A list with an entry per layer; refused unless all entries are the same one of `values`."""

    values: tuple[str, ...]
    why: str


Rule = Carry | Keep | Drop | Only | Uniform


@dataclass(frozen=True, slots=True)
class Names:
    """Modules of one layer of the dense class, named from the layer on: what adapter experts are attached to."""

    block: str  # the FFN
    gate: str  # its linear layers: W_down(act(W_gate x) * (W_up x))
    up: str
    down: str
    attention: tuple[str, ...]  # the linear layers of the attention


@dataclass(frozen=True)
class Family:
    """A dense architecture and the MoE architecture that can compute the same."""

    dense: str  # model_type
    dense_class: str  # the transformers class whose weights these are
    moe: str
    moe_class: str
    tensors: tuple[TensorRow, ...]
    fields: Mapping[str, Rule]
    expert_fields: Mapping[str, str]  # config field of the MoE -> "experts" or "top_k"
    constants: Mapping[str, Any]  # further fields of the MoE's config
    ignored_tensors: tuple[str, ...]  # regular expressions: buffers of old checkpoints that no reader uses
    fused: Mapping[str, tuple[str, ...]]  # parameter of a stock layer -> its parts on disk, per expert, in memory order
    moe_block: str  # modules of a stock layer: the sparse FFN, its router, its experts
    router: str
    experts: str
    names: Names  # of the dense class
    renormalises: bool  # the router divides the top-k weights by their sum, whatever the config says

    def source_rows(self, layers: int) -> Iterator[tuple[TensorRow, str]]:
        """Yield every dense tensor that the family expects, as (row, name)."""
        for row in self.tensors:
            if row.source is not None:
                for layer in range(layers) if row.per_layer else (0,):
                    yield row, row.source.format(layer=layer)
