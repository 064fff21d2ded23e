"""Whether a tensor on disk holds NaN or infinity: a look at the exponents, 4 MiB at a time."""

from collections.abc import Iterable

import numpy as np

from upcycle.checkpoint.header import DTYPE_BITS, TensorSpec
from upcycle.errors import CheckpointError
from upcycle.plan.plan import Write
from upcycle.plan.sources import reads

CHUNK = 4 * 2**20
"""Bytes looked at a time."""

_EXPONENTS = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}
"""dtype -> (its bits as integers, the bits of the exponent): NaN and infinity are the values that have all of them."""


def first_not_finite(spec: TensorSpec) -> int | None:
    """Return the position of the first NaN or infinity among the tensor's elements, or None."""
    kind, exponent = _EXPONENTS[spec.dtype]
    width = DTYPE_BITS[spec.dtype] // 8
    position = 0
    with spec.path.open("rb", buffering=0) as file:
        file.seek(spec.offset)
        while position < spec.elements:
            data = file.read(min(CHUNK, (spec.elements - position) * width))
            data = data[: len(data) // width * width]
            if not data:
                raise CheckpointError("ends before its header says", where=spec.path)
            bits = np.frombuffer(data, dtype=kind)
            wrong = (bits & np.array(exponent, kind)) == exponent
            if wrong.any():
                return position + int(wrong.argmax())
            position += bits.size
            file.seek(spec.offset + position * width)
    return None


def check_finite(spec: TensorSpec) -> None:
    """Raise CheckpointError, naming the tensor and the place in it, for NaN or infinity."""
    position = first_not_finite(spec)
    if position is None:
        return
    index = [int(number) for number in np.unravel_index(position, spec.shape)] if spec.shape else []
    raise CheckpointError(
        f"tensor {spec.name!r} is not finite",
        where=spec.path,
        found=f"{_value(spec, position)} at {index}",
        hint="without --check-finite it is copied as it is",
    )


def tensors_read(writes: Iterable[Write]) -> list[TensorSpec]:
    """Return every tensor that `writes` read, once: experts read the same ones again and again."""
    return list(dict.fromkeys(spec for write in writes for spec in reads(write.source)))


def _value(spec: TensorSpec, position: int) -> str:
    from upcycle.plan.values import decode

    width = DTYPE_BITS[spec.dtype] // 8
    with spec.path.open("rb") as file:
        file.seek(spec.offset + position * width)
        value = float(decode(file.read(width), spec.dtype)[0])
    return "NaN" if value != value else "Inf" if value > 0 else "-Inf"
