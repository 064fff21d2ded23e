"""Computed sources: a stream of blocks of floats, so that memory does not grow with the tensor. NumPy only.

Drawn values come from Philox, keyed by the SHA-256 of the source's key. NumPy promises the bits of Philox across
releases but not the normal deviates made from them; the receipt therefore keeps the hash of every drawn tensor.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from upcycle.checkpoint.header import DTYPE_BITS, TensorSpec
from upcycle.errors import CheckpointError, InputError
from upcycle.plan.plan import Write
from upcycle.plan.sources import BLOCK_ELEMENTS, Copy, Noise, Normal, Zeros

Floats = npt.NDArray[np.floating[Any]]
"""float32, or float64 where the source has it."""


def encoded_blocks(write: Write) -> Iterator[bytes]:
    """Yield the bytes of `write` in order.

    Raises InputError where a cast would turn a finite value into infinity, or where what is computed is not finite.
    """
    for values in _values(write):
        yield encode(values, write)


def _values(write: Write) -> Iterator[Floats]:
    source = write.source
    if isinstance(source, Copy):
        yield from read_blocks(source.tensor)
    elif isinstance(source, Noise):
        yield from _noisy(source)
    elif isinstance(source, Normal):
        generator = keyed_generator(source.key)
        for count in _counts(write.elements):
            yield _drawn(generator, count, source.std)
    elif isinstance(source, Zeros):
        for count in _counts(write.elements):
            yield np.zeros(count, dtype=np.float32)


def _noisy(source: Noise) -> Iterator[Floats]:
    scale = source.std * standard_deviation(source.tensor)
    generator = keyed_generator(source.key)
    for values in read_blocks(source.tensor):
        noise = _drawn(generator, values.size, scale)
        with np.errstate(over="ignore", invalid="ignore"):  # `encode` refuses what comes of it
            noisy = values + noise
        yield noisy


def _drawn(generator: np.random.Generator, count: int, std: float) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):  # as above
        return generator.standard_normal(count, dtype=np.float32) * np.float32(std)


def keyed_generator(key: str) -> np.random.Generator:
    """Return the generator of the random stream named `key`."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


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


def read_blocks(spec: TensorSpec) -> Iterator[Floats]:
    """Yield the values of a tensor on disk, `BLOCK_ELEMENTS` at a time."""
    width = DTYPE_BITS[spec.dtype] // 8
    with spec.path.open("rb", buffering=0) as file:
        file.seek(spec.offset)
        for count in _counts(spec.elements):
            data = file.read(count * width)
            if len(data) != count * width:
                raise CheckpointError("ends before its header says", where=spec.path)
            yield decode(data, spec.dtype)


def decode(data: bytes, dtype: str) -> Floats:
    """Return little-endian `data` of a float dtype as float32, or as float64 where it is that."""
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    values = np.frombuffer(data, dtype={"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
    return values.astype(np.float32) if dtype == "F16" else values


def encode(values: Floats, write: Write) -> bytes:
    """Return `values` as the bytes of `write.dtype`, rounded to nearest even."""
    with np.errstate(over="ignore", invalid="ignore"):
        if write.dtype == "BF16":
            encoded: npt.NDArray[np.generic] = _to_bf16(_to_odd(values) if values.dtype == np.float64 else values)
            finite = (encoded.view(np.uint16) & 0x7F80) != 0x7F80
        else:
            encoded = values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[write.dtype])
            finite = np.isfinite(encoded)
    lost = ~finite & np.isfinite(values) if isinstance(write.source, Copy) else ~finite
    if lost.any():
        largest = np.abs(values[lost]).max()
        raise InputError(
            f"tensor {write.name!r} does not fit {write.dtype}",
            found=f"a value of {largest:.3g}",
            hint="--dtype bf16 has the range of float32" if write.dtype == "F16" else None,
        )
    return encoded.tobytes()


def _to_odd(values: Floats) -> npt.NDArray[np.float32]:
    """Cut float64 to float32 such that rounding again is right: towards zero, the last bit set where that lost any.

    Rounding to odd (Boldo and Melquiond, 2008); rounding to nearest twice is wrong next to ties.
    """
    near = values.astype(np.float32)
    cut = np.where(np.abs(near) > np.abs(values), np.nextafter(near, np.float32(0)), near)
    lost = np.isfinite(cut) & (cut != values)
    cut.view(np.uint32)[lost] |= 1
    return cut


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest even: add half of the lower half's range, one more when the kept part is odd; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = (bits[nan] >> 16) | 0x40
    return rounded


def _counts(elements: int) -> Iterator[int]:
    for start in range(0, elements, BLOCK_ELEMENTS):
        yield min(BLOCK_ELEMENTS, elements - start)
