"""Reads a value of a file as the kind that is wanted, or as nothing: a file may hold anything."""

from collections.abc import Mapping
from typing import Any


def at(value: object, *path: str) -> Any:
    """Return what an object holds under a name, or of objects inside one another; None where it holds no such thing."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def whole(value: object) -> int | None:
    """Return a whole number from 0 to 10**18; None for anything else."""
    return value if type(value) is int and 0 <= value < 10**18 else None


def real(value: object) -> float | None:
    """Return a finite number, below 1e30 in size; None for anything else."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e30 else None  # type: ignore[arg-type]


def items(value: object) -> list[Any]:
    """Return a list; an empty one for anything else."""
    return value if isinstance(value, list) else []


def texts(value: object) -> list[str]:
    """Return a text, or those of a list, as a list; an empty one for anything else."""
    return [item for item in (items(value) or [value]) if isinstance(item, str)]
