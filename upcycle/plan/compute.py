"""Computed sources: a stream of blocks of floats, so that memory does not grow with the tensor. NumPy only."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from upcycle.checkpoint.header import TensorSpec
from upcycle.plan.draws import drawn, keyed_generator
from upcycle.plan.plan import Write
from upcycle.plan.sources import (
    BLOCK_ELEMENTS,
    Blank,
    Columns,
    Constant,
    Copy,
    Fold,
    LowRank,
    Mean,
    Noise,
    Normal,
    Ones,
    Part,
    Redrawn,
    Reordered,
    RowScaled,
    Scaled,
    Slice,
    Stacked,
    Zeros,
    elements,
)
from upcycle.plan.values import Floats, counts, encode, read_blocks, read_bytes

CACHED_ELEMENTS = 2**15
"""Values that stay in a processor's cache while they are worked on again and again: 128 KiB of float32."""

ENCODED_ELEMENTS = 2**17
"""Values that are worked on at a time where the size of blocks changes no bit, as it does in sums over a tensor."""


def encoded_blocks(write: Write) -> Iterator[bytes]:
    """Yield the bytes of `write` in order.

    Raises InputError where a cast would turn a finite value into infinity, or where what is computed is not finite.
    """
    if write.pieces is not None:
        yield from _bytes_of(write.pieces)
        return
    for values in _values(write):
        for start in range(0, values.size, ENCODED_ELEMENTS):
            yield encode(values[start : start + ENCODED_ELEMENTS], write)


def _bytes_of(pieces: Iterable[TensorSpec | int]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, TensorSpec):
            yield from read_bytes(piece)
        else:
            yield from (bytes(count) for count in counts(piece))


def _values(write: Write) -> Iterator[Floats]:
    source = write.source
    if isinstance(source, Normal):
        generator = keyed_generator(source.key)
        for count in counts(write.elements):
            yield drawn(generator, count, source.std)
    elif isinstance(source, Zeros | Ones | Constant):
        value = np.float32(source.value if isinstance(source, Constant) else isinstance(source, Ones))
        for zeros in _blank(Blank(write.elements)):
            yield zeros + value
    else:
        yield from _part(source)


def _part(source: Part) -> Iterator[Floats]:
    return _STREAMS[type(source)](source)


def _copied(source: Copy) -> Iterator[Floats]:
    return read_blocks(source.tensor, most=ENCODED_ELEMENTS)


def _blank(source: Blank) -> Iterator[Floats]:
    for count in counts(source.count):
        yield np.zeros(count, dtype=np.float32)


def _stacked(source: Stacked) -> Iterator[Floats]:
    for part in source.parts:
        yield from _part(part)


def _scaled(source: Scaled) -> Iterator[Floats]:
    for values in read_blocks(source.tensor, most=ENCODED_ELEMENTS):
        with np.errstate(over="ignore", invalid="ignore"):  # `encode` refuses what comes of it
            scaled = _single(values) * np.float32(source.factor)
        yield scaled


def _adapted(source: LowRank) -> Iterator[Floats]:
    """Yield `W + factor * B A`, a few rows at a time.

    Added up by rank, elementwise: what a BLAS gives depends on its make, its threads and the number of rows. The rows
    are so few that they stay in the processor's cache meanwhile.
    """
    a, b, width = _whole(source.a), _whole(source.b), source.tensor.shape[1]
    rows = max(1, CACHED_ELEMENTS // width)
    product = np.empty((rows, width), dtype=np.float32)
    for first, values in _row_blocks(source.tensor):
        adapted = np.empty_like(values)
        for start in range(0, len(values), rows):
            some = slice(start, start + rows)
            total = adapted[some]
            with np.errstate(over="ignore", invalid="ignore"):
                total[:] = 0
                for of_rows, row in zip(b[first + start : first + start + len(total)].T, a, strict=True):
                    total += np.multiply(of_rows[:, None], row, out=product[: len(total)])
                total *= np.float32(source.factor)
                total += values[some]
        yield adapted.ravel()


def _row_scaled(source: RowScaled) -> Iterator[Floats]:
    by = _whole(source.by)
    for first, values in _row_blocks(source.tensor):
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = (1 + by[first : first + len(values)])[:, None] * values
        yield scaled.ravel()


def _folded(source: Fold) -> Iterator[Floats]:
    by = np.ones(1, np.float32) if source.by is None else _whole(source.by)
    for first, values in _row_blocks(source.tensor, ENCODED_ELEMENTS):
        along = by[first : first + len(values), None] if source.by and source.axis == 0 else by
        with np.errstate(over="ignore", invalid="ignore"):
            folded = (values + np.float32(source.add)) * np.float32(source.factor) * along
        yield folded.ravel()


def _reordered(source: Reordered) -> Iterator[Floats]:
    heads = source.tensor.shape[0] // len(source.order)
    width = source.tensor.elements // (heads * len(source.order))
    for values in read_blocks(source.tensor, row=len(source.order) * width, most=ENCODED_ELEMENTS):
        yield values.reshape(-1, len(source.order), width)[:, source.order].ravel()


def _mean(source: Mean) -> Iterator[Floats]:
    for blocks in zip(*map(read_blocks, source.tensors), strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            total = _single(blocks[0]).copy()
            for values in blocks[1:]:
                total += _single(values)
            total /= np.float32(len(blocks))
        yield total


def chosen_neurons(source: Redrawn) -> npt.NDArray[np.int64]:
    """Return the rows or columns of a matrix that are drawn anew, in ascending order."""
    total = source.tensor.shape[source.axis]
    return np.sort(keyed_generator(source.chosen).permutation(total)[: source.count])


def _redrawn(source: Redrawn) -> Iterator[Floats]:
    """Yield the matrix, its chosen neurons replaced; a first pass over it finds their mean and standard deviation."""
    chosen, width = np.zeros(source.tensor.shape[source.axis], bool), source.tensor.shape[1]
    chosen[chosen_neurons(source)] = True

    def replaced(first: int, rows: int) -> npt.NDArray[np.bool_]:
        rows_B = chosen[first : first + rows, None] if source.axis == 0 else chosen[None]
        return np.broadcast_to(rows_B, (rows, width))

    count = source.count * source.tensor.elements // source.tensor.shape[source.axis]
    total = squares = 0.0
    for first, values in _row_blocks(source.tensor):
        dropped = values[replaced(first, len(values))].astype(np.float64)
        total += float(dropped.sum())
        squares += float(np.square(dropped).sum())
    mean = total / count
    std = sqrt(max(squares / count - mean * mean, 0.0))
    generator = keyed_generator(source.key)
    for first, values in _row_blocks(source.tensor):
        mask, redrawn = replaced(first, len(values)), values.copy()
        redrawn[mask] = drawn(generator, int(mask.sum()), std) + np.float32(mean)
        yield redrawn.ravel()


def _sliced(source: Slice) -> Iterator[Floats]:
    rows = elements(source.part) // source.width
    sizes = counts(rows * source.width, row=source.width)
    for values in _regrouped(_part(source.part), sizes):
        yield values.reshape(-1, source.width)[:, source.first : source.end].ravel()


def _side_by_side(source: Columns) -> Iterator[Floats]:
    widths = [elements(part) // source.rows for part in source.parts]
    # few rows at a time: those of every part are held together
    sizes = counts(source.rows * sum(widths), row=sum(widths), most=ENCODED_ELEMENTS)
    heights = [count // sum(widths) for count in sizes]
    streams = [
        _regrouped(_part(part), [height * width for height in heights])
        for part, width in zip(source.parts, widths, strict=True)
    ]
    for blocks in zip(*streams, strict=True):
        pairs = zip(blocks, widths, strict=True)
        yield np.concatenate([block.reshape(-1, width) for block, width in pairs], axis=1).ravel()


def _regrouped(blocks: Iterator[Floats], sizes: Iterable[int]) -> Iterator[Floats]:
    """Yield the values of `blocks` in blocks of other sizes."""
    held: list[Floats] = []
    for size in sizes:
        while sum(block.size for block in held) < size:
            held.append(next(blocks))
        values = np.concatenate(held) if len(held) > 1 else held[0]
        yield values[:size]
        held = [values[size:]]


def _row_blocks(spec: TensorSpec, most: int = BLOCK_ELEMENTS) -> Iterator[tuple[int, Floats]]:
    """Yield whole rows of a tensor as float32 `(rows, width)`, each time with the number of the first."""
    width = max(spec.elements // (spec.shape[0] or 1), 1)
    first = 0
    for values in read_blocks(spec, row=width, most=most):
        yield first, _single(values).reshape(-1, width)
        first += values.size // width


def _whole(spec: TensorSpec) -> Floats:
    """The whole of a small tensor as float32."""
    return np.concatenate([_single(values) for values in read_blocks(spec)]).reshape(spec.shape)


def _single(values: Floats) -> Floats:
    with np.errstate(over="ignore"):  # as above
        return values.astype(np.float32, copy=False)


def _noisy(source: Noise) -> Iterator[Floats]:
    scale = source.std * standard_deviation(source.tensor)
    generator = keyed_generator(source.key)
    for values in read_blocks(source.tensor):
        noise = drawn(generator, values.size, scale)
        with np.errstate(over="ignore", invalid="ignore"):  # `encode` refuses what comes of it
            noisy = values + noise
        yield noisy


_STREAMS: Mapping[type[Part], Callable[[Any], Iterator[Floats]]] = {
    Copy: _copied,
    Noise: _noisy,
    Scaled: _scaled,
    LowRank: _adapted,
    RowScaled: _row_scaled,
    Fold: _folded,
    Mean: _mean,
    Redrawn: _redrawn,
    Reordered: _reordered,
    Blank: _blank,
    Slice: _sliced,
    Stacked: _stacked,
    Columns: _side_by_side,
}
"""What computes each kind of source, block by block."""


def standard_deviation(spec: TensorSpec) -> float:
    """Return the population standard deviation of a tensor's values, accumulated in float64.

    Remembered while the file is unchanged: every expert that copies the tensor asks again.
    """
    return _standard_deviation(spec, spec.path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _standard_deviation(spec: TensorSpec, _modified_ns: int) -> float:
    total = squares = 0.0
    for values in read_blocks(spec):
        wide = values.astype(np.float64)
        total += float(wide.sum())
        squares += float(np.square(wide).sum())
    mean = total / max(spec.elements, 1)
    return sqrt(max(squares / max(spec.elements, 1) - mean * mean, 0.0))
