"""The values of tensors on disk as NumPy's floats, a block at a time, and floats as the bytes of any dtype."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from upcycle.checkpoint.header import DTYPE_BITS, TensorSpec
from upcycle.errors import CheckpointError, InputError
from upcycle.plan.plan import Write
from upcycle.plan.sources import BLOCK_ELEMENTS, moves

Floats = npt.NDArray[np.floating[Any]]
"""float32, or float64 where the source has it."""


def read_blocks(spec: TensorSpec, *, row: int = 1, most: int = BLOCK_ELEMENTS) -> Iterator[Floats]:
    """Yield the values of a tensor on disk, `BLOCK_ELEMENTS` at a time or fewer: whole rows of `row`, at least one."""
    for data in read_bytes(spec, row=row, most=most):
        yield decode(data, spec.dtype)


def read_bytes(spec: TensorSpec, *, row: int = 1, most: int = BLOCK_ELEMENTS) -> Iterator[bytes]:
    """Yield the same as bytes; raise CheckpointError where the file ends too early."""
    width = DTYPE_BITS[spec.dtype] // 8
    with spec.path.open("rb", buffering=0) as file:
        file.seek(spec.offset)
        for count in counts(spec.elements, row, most):
            data = file.read(count * width)
            if len(data) != count * width:
                raise CheckpointError("ends before its header says", where=spec.path)
            yield data


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
    lost = ~finite & np.isfinite(values) if moves(write.source) else ~finite
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


def counts(total: int, row: int = 1, most: int = BLOCK_ELEMENTS) -> Iterator[int]:
    """Yield the sizes of blocks of `total` values: whole rows of `row`, at least one, no more than `BLOCK_ELEMENTS`.

    `most` is a lower limit.
    """
    step = max(min(BLOCK_ELEMENTS, most) // row, 1) * row
    for start in range(0, total, step):
        yield min(step, total - start)
