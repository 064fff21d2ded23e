"""Every tensor of an output held against what its plan says, byte by byte."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from upcycle.checkpoint.header import TensorSpec
from upcycle.checkpoint.reader import Checkpoint
from upcycle.message import listed
from upcycle.plan.compute import encoded_blocks
from upcycle.plan.finite import first_not_finite
from upcycle.plan.plan import Plan, Write
from upcycle.plan.report import Report
from upcycle.plan.sources import draws

CHUNK = 4 * 2**20
"""Bytes compared at a time."""

NAMED = 3
"""Tensors or files that a line names."""


@dataclass
class Comparison:
    """What was found; lists hold tensor names, each with what is wrong."""

    copied: int = 0  # tensors that equal their source byte for byte
    computed: int = 0  # tensors that equal their recipe and the receipt's hash
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    redrawn: list[str] = field(default_factory=list)  # equal to the receipt's hash, but not to a redraw here
    not_finite: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every tensor is what the plan says, and finite."""
        return not (self.missing or self.unexpected or self.different or self.not_finite)


def compare_tensors(
    plan: Plan, moe: Checkpoint, receipt: Mapping[str, Any], workers: int, advance: Callable[[int], None]
) -> Comparison:
    """Compare every tensor of `moe` with `plan`, and the computed ones with the receipt's hashes as well.

    `advance` is called with the bytes of every tensor that is done.
    """
    result = Comparison()
    writes = {write.name: write for write in plan.writes}
    result.missing = sorted(writes.keys() - moe.tensors.keys())
    result.unexpected = sorted(moe.tensors.keys() - writes.keys())
    present = [write for write in plan.writes if write.name in moe.tensors]

    def check(write: Write) -> tuple[Write, str | None]:
        found = _check_write(write, moe.tensors[write.name], receipt)
        advance(write.nbytes)
        return write, found

    with ThreadPoolExecutor(max_workers=workers) as pool:
        for write, problem in pool.map(check, present):
            _record(result, write, problem)
        scanned = _scanned(present, moe)
        for spec, finite in zip(scanned, pool.map(_is_finite, scanned), strict=True):
            if not finite:
                result.not_finite.append(spec.name)
    return result


def report_tensors(report: Report, found: Comparison, receipt: Mapping[str, Any]) -> None:
    """Add what was found to `report`, a line for each kind of finding."""
    for name, names in (("missing tensors", found.missing), ("unexpected tensors", found.unexpected)):
        if names:
            report.add(name, False, _listed(names))
    report.add(
        "tensors",
        not found.different,
        f"{found.copied:,} equal their source byte for byte, {found.computed:,} equal their recipe and hash"
        if not found.different
        else f"{len(found.different)} differ: {_listed(found.different)}",
    )
    if found.redrawn:
        numpy = receipt["versions"].get("numpy")
        text = f"{len(found.redrawn)} have the receipt's hash, but NumPy draws other values here than {numpy} did"
        report.add("redrawn tensors", False, text, otherwise="note")
    report.add(
        "finite",
        not found.not_finite,
        "no NaN, no Inf" if not found.not_finite else f"NaN or Inf in {_listed(found.not_finite)}",
    )
    report.figures["tensors"] = asdict(found)


def _listed(names: list[str]) -> str:
    return listed(names, NAMED, between="; ", cut=300)


_REDRAWN = "redrawn"


def _record(result: Comparison, write: Write, problem: str | None) -> None:
    if problem == _REDRAWN:
        result.redrawn.append(write.name)
    elif problem is not None:
        result.different.append(f"{write.name}: {problem}")
    elif not write.hashed:
        result.copied += 1
    else:
        result.computed += 1


def _check_write(write: Write, spec: TensorSpec, receipt: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a tensor, or None."""
    if (spec.dtype, spec.shape) != (write.dtype, write.shape):
        return f"found {spec.dtype} {spec.shape}, expected {write.dtype} {write.shape}"
    if write.copied:
        offset = _first_difference(_chunks(spec), _chunks(write.copied))
        return None if offset is None else f"differs from {write.copied.name} at byte {offset}"
    if not write.hashed:
        offset = _first_difference(_chunks(spec), _rechunked(encoded_blocks(write)))
        return None if offset is None else f"differs from its source at byte {offset}"
    return _check_computed(write, spec, receipt)


def _check_computed(write: Write, spec: TensorSpec, receipt: Mapping[str, Any]) -> str | None:
    expected_hash = receipt["computed_sha256"].get(write.name)
    written, recomputed = hashlib.sha256(), hashlib.sha256()
    for chunk in _chunks(spec):
        written.update(chunk)
    if written.hexdigest() != expected_hash:
        return f"SHA-256 {written.hexdigest()[:12]}, the receipt says {str(expected_hash)[:12]}"
    for block in encoded_blocks(write):
        recomputed.update(block)
    if recomputed.digest() == written.digest():
        return None
    drawn_elsewhere = draws(write.source) and receipt["versions"].get("numpy") != np.__version__
    return _REDRAWN if drawn_elsewhere else "has the receipt's hash, but is not what its recipe gives"


def _first_difference(left: Iterable[bytes], right: Iterable[bytes]) -> int | None:
    """Return the offset of the first byte that differs between two streams of equal chunks, or None."""
    position = 0
    for one, other in zip(left, right, strict=True):
        if one != other:
            unequal = np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)
            return position + int(np.argmax(unequal))
        position += len(one)
    return None


def _rechunked(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of `blocks` in chunks of `CHUNK`, the last one shorter."""
    held = bytearray()
    for block in blocks:
        held += block
        while len(held) >= CHUNK:
            yield bytes(held[:CHUNK])
            del held[:CHUNK]
    if held:
        yield bytes(held)


def _chunks(spec: TensorSpec) -> Iterator[bytes]:
    with spec.path.open("rb", buffering=0) as file:
        file.seek(spec.offset)
        left = spec.nbytes
        while left and (data := file.read(min(left, CHUNK))):
            left -= len(data)
            yield data


def _scanned(writes: list[Write], moe: Checkpoint) -> list[TensorSpec]:
    """The tensors whose values must be looked at: of equal copies, the first is enough."""
    first: dict[TensorSpec | str, TensorSpec] = {}
    for write in writes:
        first.setdefault(write.copied or write.name, moe.tensors[write.name])
    return list(first.values())


def _is_finite(spec: TensorSpec) -> bool:
    return first_not_finite(spec) is None
