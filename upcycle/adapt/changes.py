"""Checks that the experts of a merge differ from the base, before anything is written and again on disk.

Rounding, or a tool that leaves experts out, can lose everything that was trained without an error.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from upcycle.adapt.draft import Change, Draft, disk_slice
from upcycle.checkpoint.reader import Checkpoint
from upcycle.errors import UnsupportedError
from upcycle.message import listed
from upcycle.plan.compute import encoded_blocks
from upcycle.plan.dtypes import DTYPE_WORDS
from upcycle.plan.report import Report
from upcycle.plan.values import Floats, decode, read_blocks

NAMED = 3  # at most in a message


def refuse_unchanged(draft: Draft, base: Path) -> None:
    """Raise UnsupportedError when all experts of a layer would be the base's FFN in the data type that is written."""
    same = {(change.layer, change.expert) for change in _unchanged_experts(draft.changes, None)}
    layers = _whole_layers(draft.changes, same)
    if not layers:
        return
    names = [change.place for change in draft.changes if change.layer in layers]
    dtypes = {DTYPE_WORDS[change.write.dtype] for change in draft.changes}
    raise UnsupportedError(
        f"the experts of {len(layers)} layers equal the base in {', '.join(sorted(dtypes))}: mere copies of it",
        where=base,
        found=listed(names, NAMED),
        hint="the adapter is untrained, or what it learned is lost in rounding, which --dtype f32 prevents",
    )


def report_experts(report: Report, draft: Draft, output: Checkpoint) -> None:
    """Add a line: whether every expert differs from the base in the file that was written."""
    every = {(change.layer, change.expert) for change in draft.changes}
    same = {(change.layer, change.expert) for change in _unchanged_experts(draft.changes, output)}
    if not same:
        report.add("experts", True, f"all {len(every)} differ from the base on disk")
        return
    names = [f"layer {layer}, expert {expert}" for layer, expert in sorted(same)]
    text = f"{len(same)} of {len(every)} equal the base: {listed(names, NAMED, between='; ')}"
    report.add("experts", False, text, otherwise="FAIL" if _whole_layers(draft.changes, same) else "note")


def _whole_layers(changes: Iterable[Change], same: set[tuple[int, int]]) -> set[int]:
    """Return the layers all of whose experts are among `same`."""
    return {change.layer for change in changes} - {c.layer for c in changes if (c.layer, c.expert) not in same}


def _unchanged_experts(changes: Iterable[Change], output: Checkpoint | None) -> Iterator[Change]:
    """Yield a change of every expert none of whose tensors differs from the base: as planned, or as `output` has it."""
    by_expert: dict[tuple[int, int], list[Change]] = defaultdict(list)
    for change in changes:
        by_expert[change.layer, change.expert].append(change)
    for group in by_expert.values():
        if not any(_differs(change, output) for change in group):
            yield group[0]


def _differs(change: Change, output: Checkpoint | None) -> bool:
    """Whether any value differs from the base's; stops reading at the first that does."""
    found = _planned(change) if output is None else _on_disk(change, output)
    base = _planned(replace(change, write=replace(change.write, source=change.base)))
    return any((ours != theirs).any() for ours, theirs in _side_by_side(found, base))


def _planned(change: Change) -> Iterator[Floats]:
    for data in encoded_blocks(change.write):
        yield decode(data, change.write.dtype)


def _on_disk(change: Change, output: Checkpoint) -> Iterator[Floats]:
    spec = disk_slice(change, output.tensors[change.place])
    width = spec.shape[-1]
    for values in read_blocks(spec, row=width):
        yield values.reshape(-1, width)[:, change.column :].ravel()


def _side_by_side(one: Iterator[Floats], other: Iterator[Floats]) -> Iterator[tuple[Floats, Floats]]:
    """Yield the values of two streams in pieces of equal length."""
    left = right = np.empty(0, dtype=np.float32)
    while True:
        left = left if left.size else next(one, left)
        right = right if right.size else next(other, right)
        count = min(left.size, right.size)
        if not count:
            return
        yield left[:count], right[:count]
        left, right = left[count:], right[count:]
