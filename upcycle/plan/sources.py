"""Where the values of an output tensor come from: small immutable descriptions, no data.

A source says what is computed, never how. Randomness is keyed by (seed, name), so any tensor can be made alone and
a rerun gives the same bytes. Tensors are named as in the source checkpoint.
"""

from dataclasses import dataclass, fields
from typing import Any

from upcycle.checkpoint.header import TensorSpec

BLOCK_ELEMENTS = 2**20
"""Values that a computed source holds at a time, so that memory does not grow with the tensor: 4 MiB of float32."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The values of a source tensor; its very bytes when the dtype stays the same."""

    tensor: TensorSpec


@dataclass(frozen=True, slots=True)
class Noise:
    """A source tensor plus noise `N(0, (std * s)^2)`, where `s` is the standard deviation of the tensor's values."""

    tensor: TensorSpec
    std: float  # relative to the tensor's own standard deviation
    key: str


@dataclass(frozen=True, slots=True)
class Normal:
    """Values drawn from `N(0, std^2)`."""

    std: float
    key: str


@dataclass(frozen=True, slots=True)
class Zeros:
    """All zeros."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """`factor * W`."""

    tensor: TensorSpec
    factor: float


@dataclass(frozen=True, slots=True)
class LowRank:
    """`W + factor * B A`: a LoRA added to the matrix it adapts (2106.09685, eq. 3)."""

    tensor: TensorSpec  # (out, in)
    a: TensorSpec  # (rank, in)
    b: TensorSpec  # (out, rank)
    factor: float

    def __post_init__(self) -> None:
        """A plan whose matrices do not fit is wrong itself."""
        (out, width), (rank, *_) = self.tensor.shape, self.a.shape
        if (self.a.shape, self.b.shape) != ((rank, width), (out, rank)):
            raise ValueError(f"{self.tensor.name}: {self.tensor.shape} with {self.a.shape} and {self.b.shape}")


@dataclass(frozen=True, slots=True)
class RowScaled:
    """`(1 + by)[:, None] * W`: IA3 (2205.05638) on what a matrix gives, its vector kept as the distance from one."""

    tensor: TensorSpec  # (out, in)
    by: TensorSpec  # (out,)

    def __post_init__(self) -> None:
        """A plan whose shapes do not fit is wrong itself."""
        if self.by.shape != self.tensor.shape[:1]:
            raise ValueError(f"{self.tensor.name}: {self.tensor.shape} with {self.by.shape}")


@dataclass(frozen=True, slots=True)
class Stacked:
    """The values of some sources one after the other: concatenated along the first axis."""

    parts: "tuple[Part, ...]"


@dataclass(frozen=True, slots=True)
class Columns:
    """Matrices with as many rows side by side: concatenated along the second axis."""

    parts: "tuple[Part, ...]"
    rows: int

    def __post_init__(self) -> None:
        """A plan whose shapes do not fit is wrong itself."""
        if any(elements(part) % self.rows for part in self.parts):
            raise ValueError(f"no {self.rows} rows: {[elements(part) for part in self.parts]}")


Part = Copy | Scaled | LowRank | RowScaled | Stacked | Columns
"""What others can be put together from: sources that know how many values they have."""

Source = Part | Noise | Normal | Zeros


def random_key(seed: int, name: str) -> str:
    """Return the key of the random stream for the output tensor `name`."""
    return f"{seed}:{name}"


def elements(source: Part) -> int:
    """Return the number of values of `source`."""
    if isinstance(source, Stacked | Columns):
        return sum(elements(part) for part in source.parts)
    return source.tensor.elements


def reads(source: Source) -> tuple[TensorSpec, ...]:
    """Return the tensors that `source` reads, in the order in which it names them; none where all is drawn."""
    if isinstance(source, Stacked | Columns):
        return tuple(spec for part in source.parts for spec in reads(part))
    values = (getattr(source, item.name) for item in fields(source))
    return tuple(value for value in values if isinstance(value, TensorSpec))


def moves(source: Source) -> bool:
    """Whether all that `source` gives are values of source tensors as they are: none is drawn, none computed."""
    if isinstance(source, Stacked | Columns):
        return all(moves(part) for part in source.parts)
    return isinstance(source, Copy)


def describe(source: Source) -> dict[str, Any]:
    """Return `source` as JSON data that is the same on every machine: names and offsets, no paths."""
    described: dict[str, Any] = {"kind": type(source).__name__.lower()}
    for item in fields(source):
        value = getattr(source, item.name)
        if isinstance(value, TensorSpec):
            value = [value.name, value.dtype, list(value.shape), value.path.name, value.offset]
        elif isinstance(value, tuple):
            value = [describe(part) for part in value]
        described[item.name] = value
    return described
