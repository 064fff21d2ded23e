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


Source = Copy | Noise | Normal | Zeros


def random_key(seed: int, name: str) -> str:
    """Return the key of the random stream for the output tensor `name`."""
    return f"{seed}:{name}"


def reads(source: Source) -> TensorSpec | None:
    """Return the source tensor that `source` reads, or None."""
    return source.tensor if isinstance(source, Copy | Noise) else None


def describe(source: Source) -> dict[str, Any]:
    """Return `source` as JSON data that is the same on every machine: names and offsets, no paths."""
    described: dict[str, Any] = {"kind": type(source).__name__.lower()}
    for item in fields(source):
        value = getattr(source, item.name)
        if isinstance(value, TensorSpec):
            value = [value.name, value.dtype, list(value.shape), value.path.name, value.offset]
        described[item.name] = value
    return described
