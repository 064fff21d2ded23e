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
class Ones:
    """All ones: a norm that changes nothing."""


@dataclass(frozen=True, slots=True)
class Constant:
    """One value everywhere."""

    value: float


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
class Fold:
    """`factor * (W + add) * by`, where `by` has a value for each row or column: a norm's weight folded into a matrix.

    Gemma's norms count from one (`add` 1), its embeddings are scaled by a constant (`factor`).
    """

    tensor: TensorSpec
    add: float = 0.0
    factor: float = 1.0
    by: TensorSpec | None = None  # a vector
    axis: int = 0  # of `tensor`, along which `by` runs: 0 scales rows, 1 columns

    def __post_init__(self) -> None:
        """Refuse a vector of another length than the axis."""
        if self.by is not None and self.by.shape != self.tensor.shape[self.axis : self.axis + 1]:
            raise ValueError(f"{self.tensor.name}: {self.tensor.shape} by {self.by.shape} along axis {self.axis}")


@dataclass(frozen=True, slots=True)
class Reordered:
    """The rows of a tensor, those of each head in another order: row `i` of a head is what was its row `order[i]`."""

    tensor: TensorSpec
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what is no order of the rows of a whole number of heads."""
        if sorted(self.order) != list(range(len(self.order))) or self.tensor.shape[0] % len(self.order):
            raise ValueError(f"{self.tensor.name}: {self.tensor.shape} in the order {self.order}")


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of tensors of one shape, summed in float32 in their order: what fine-tunes of one model share."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        """Refuse tensors of different shapes."""
        if len({spec.shape for spec in self.tensors}) != 1:
            raise ValueError(f"mean of {[spec.shape for spec in self.tensors]}")


@dataclass(frozen=True, slots=True)
class Redrawn:
    """A matrix some of whose rows or columns are drawn anew from `N(mean, std^2)` of those that are replaced.

    Drop-Upcycling (2502.19261, section 3.1): neurons are rows of gate and up and columns of down. Which ones is drawn
    from `chosen`, so that the three matrices of an expert can share them; the values are drawn from `key`.
    """

    tensor: TensorSpec  # (out, in)
    axis: int  # 0: neurons are rows, 1: columns
    count: int  # neurons that are drawn anew
    chosen: str  # key of the stream that chooses them
    key: str  # key of the stream of values

    def __post_init__(self) -> None:
        """Refuse more neurons than there are."""
        if not 0 < self.count <= self.tensor.shape[self.axis]:
            raise ValueError(f"{self.tensor.name}: {self.count} of {self.tensor.shape[self.axis]} neurons")


@dataclass(frozen=True, slots=True)
class Blank:
    """So many zeros: neurons that widen an FFN without changing what it computes."""

    count: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Some columns of a source that is a matrix; rows of a tensor on disk are a tensor themselves (`rows_of`)."""

    part: "Part"
    width: int  # columns that the source has
    first: int
    end: int  # the one after the last

    def __post_init__(self) -> None:
        """Refuse columns that are not there."""
        if not 0 <= self.first < self.end <= self.width or elements(self.part) % self.width:
            raise ValueError(f"columns {self.first} to {self.end} of {self.width}")


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


OfTensor = Copy | Noise | Scaled | LowRank | RowScaled | Fold | Reordered | Redrawn
"""Sources with as many values as the one tensor that they start from."""

Part = OfTensor | Mean | Blank | Slice | Stacked | Columns
"""Sources that can be stacked, joined or sliced, because their number of values is known."""

Source = Part | Normal | Zeros | Ones | Constant


def random_key(seed: int, name: str) -> str:
    """Return the key of the random stream for the output tensor `name`."""
    return f"{seed}:{name}"


def elements(source: Part) -> int:
    """Return the number of values of `source`."""
    if isinstance(source, Stacked | Columns):
        return sum(elements(part) for part in source.parts)
    if isinstance(source, Slice):
        return elements(source.part) // source.width * (source.end - source.first)
    if isinstance(source, Blank):
        return source.count
    return source.tensors[0].elements if isinstance(source, Mean) else source.tensor.elements


def reads(source: Source) -> tuple[TensorSpec, ...]:
    """Return the tensors that `source` reads, in the order in which it names them; none where all is drawn."""
    if isinstance(source, Stacked | Columns):
        return tuple(spec for part in source.parts for spec in reads(part))
    if isinstance(source, Slice):
        return reads(source.part)
    if isinstance(source, Mean):
        return source.tensors
    values = (getattr(source, item.name) for item in fields(source))
    return tuple(value for value in values if isinstance(value, TensorSpec))


def moves(source: Source) -> bool:
    """Whether all that `source` gives are values of source tensors as they are: none is drawn, none computed."""
    if isinstance(source, Stacked | Columns):
        return all(moves(part) for part in source.parts)
    return moves(source.part) if isinstance(source, Slice) else isinstance(source, Copy | Reordered | Blank)


def pieces(source: Source) -> tuple[Copy | Blank, ...] | None:
    """Return what `source` gives as whole tensors and zeros one after the other; None where it is more than that."""
    if isinstance(source, Stacked):
        found = [pieces(part) for part in source.parts]
        return None if None in found else tuple(piece for some in found if some for piece in some)
    return (source,) if isinstance(source, Copy | Blank) else None


def draws(source: Source) -> bool:
    """Whether any of the values are drawn at random."""
    if isinstance(source, Stacked | Columns):
        return any(draws(part) for part in source.parts)
    return draws(source.part) if isinstance(source, Slice) else isinstance(source, Noise | Normal | Redrawn)


def describe(source: Source) -> dict[str, Any]:
    """Return `source` as JSON data that is the same on every machine: names and offsets, no paths."""
    described: dict[str, Any] = {"kind": type(source).__name__.lower()}
    for item in fields(source):
        value = getattr(source, item.name)
        described[item.name] = [_described(part) for part in value] if isinstance(value, tuple) else _described(value)
    return described


def _described(value: Any) -> Any:
    if isinstance(value, TensorSpec):
        return [value.name, value.dtype, list(value.shape), value.path.name, value.offset]
    return describe(value) if isinstance(value, Source) else value
