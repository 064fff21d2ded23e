"""The data of a planned merge: what it writes, and which values make its experts differ from the base."""

from collections.abc import Iterator
from dataclasses import dataclass

from upcycle.build.adapter_experts import AdapterExperts, slice_of
from upcycle.build.methods.bottleneck import narrow_expert
from upcycle.checkpoint.header import TensorSpec
from upcycle.checkpoint.reader import Checkpoint
from upcycle.families.match import Match
from upcycle.families.parts import MATRICES
from upcycle.plan.plan import Plan, Write
from upcycle.plan.sources import Copy, Source, Zeros


@dataclass(frozen=True, slots=True)
class Change:
    """One tensor in which an expert differs from the base: the values written, and those that would change nothing."""

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


def changes_of(
    plan: Plan, base: Checkpoint, matched: Match, adapter: AdapterExperts, *, compact: bool
) -> Iterator[Change]:
    """Yield what tells each expert from the base: of a bottleneck its down projection alone, which begins at zero."""
    writes = {write.name: write for write in plan.writes}
    for matrix in ("down",) if adapter.kind == "bottleneck" else MATRICES:
        tensor = next(row for row in matched.target.tensors if f"expert.{matrix}" in row.parts)
        for layer, count in enumerate(adapter.experts):
            for number in range(count):
                write = writes[tensor.name.format(layer=layer, expert=number)]
                if adapter.kind != "bottleneck":
                    spec = matched.part(base, matrix, layer)
                    assert spec is not None  # noqa: S101 - only a head may be missing
                    yield Change(layer, number, write, Copy(spec), write.name)
                    continue
                down = narrow_expert(layer, number, adapter).down
                added = Write(write.name, write.dtype, (matched.sizes["D"], adapter.rank), "experts", down)
                column = 0 if compact else matched.sizes["F"]
                index = None if tensor.per_expert else number
                yield Change(layer, number, added, Zeros(), write.name, index=index, column=column)


def disk_slice(change: Change, spec: TensorSpec) -> TensorSpec:
    """Return where the values of `change` lie in the output tensor `spec`, its other columns included."""
    return spec if change.index is None else slice_of(spec, change.index)
