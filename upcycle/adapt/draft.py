"""A merge that has been planned: what it writes, and by what its experts differ from the base."""

from dataclasses import dataclass

from upcycle.adapt.saved import slice_of
from upcycle.checkpoint.header import TensorSpec
from upcycle.plan.plan import Plan, Write
from upcycle.plan.sources import Source


@dataclass(frozen=True, slots=True)
class Change:
    """What makes one expert another than the base: the values that are written, and those that would be no change."""

    layer: int
    expert: int
    write: Write
    base: Source
    place: str  # the tensor of the output that holds them
    index: int | None = None  # at this index of its first axis
    column: int = 0  # from this column on


@dataclass(frozen=True)
class Draft:
    """A merge that has been checked, before anything is counted or written."""

    plan: Plan
    changes: tuple[Change, ...]
    limits: tuple[str, ...]  # what other programs do not compute of the target, beside what every such config has


def disk_slice(change: Change, spec: TensorSpec) -> TensorSpec:
    """Return where the values of `change` lie in the output tensor `spec`, its other columns included."""
    return spec if change.index is None else slice_of(spec, change.index)
