"""Sources made of sources: the matrix of an expert times a number, a tensor of one value."""

from dataclasses import replace

from upcycle.plan.sources import Blank, Columns, Constant, Copy, Ones, Part, Scaled, Source, Stacked, Zeros


def filled(value: float) -> Source:
    """Return the source of a tensor that is one value throughout."""
    return Zeros() if value == 0 else Ones() if value == 1 else Constant(value)


def scaled(part: Part, factor: float) -> Part:
    """Return the source of `factor` times what `part` gives."""
    if factor == 1 or isinstance(part, Blank):
        return part
    if isinstance(part, Stacked | Columns):
        return replace(part, parts=tuple(scaled(inner, factor) for inner in part.parts))
    if isinstance(part, Copy):
        return Scaled(part.tensor, factor)
    assert isinstance(part, Scaled)  # noqa: S101 - shared experts are copies of the dense FFN, or halves
    whole = part.factor * factor
    return Copy(part.tensor) if whole == 1 else replace(part, factor=whole)
