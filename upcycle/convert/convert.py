"""Carries out a conversion: builds the plan, writes the files, writes the receipt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from upcycle.build.conversion import conversion_warnings, plan_conversion
from upcycle.checkpoint.journal import Part
from upcycle.checkpoint.lineage import LINEAGE_FILE, lineage, lineage_bytes
from upcycle.checkpoint.reader import Checkpoint, open_checkpoint
from upcycle.convert.candidates import Candidate, candidates
from upcycle.convert.receipt import record_of
from upcycle.plan.account import Account, account
from upcycle.plan.execute import Advance
from upcycle.plan.make import Making, make, output_path, worker_count
from upcycle.plan.plan import Plan
from upcycle.plan.receipt import Origin, receipt_bytes
from upcycle.requests import Conversion, Convert


@dataclass(frozen=True, slots=True)
class Draft:
    """A conversion that has been checked and counted, and may have been done."""

    plan: Plan
    account: Account
    warnings: tuple[str, ...]  # what a user should know before the work is done
    candidates: tuple[Candidate, ...] = ()  # what the dense model can become, where that was asked for
    left: tuple[str, ...] = ()  # shards that other parts of the work have yet to write; OUT is not there until then


def draft(checkpoint: Checkpoint, request: Conversion) -> Draft:
    """Plan the conversion of `checkpoint`; see `plan_conversion` for what it raises."""
    found = candidates(checkpoint, request) if getattr(request, "targets", False) else ()
    planned = next((candidate.plan for candidate in found if candidate.plan), None)
    plan = planned or plan_conversion(checkpoint, request)  # of candidates without a plan it says the reason
    warnings = conversion_warnings(checkpoint, plan, request)
    return Draft(plan, account(plan, worker_count(getattr(request, "workers", 0))), warnings, found)


def rehearse(directory: Path, request: Convert) -> Draft:
    """Make every check of a conversion that needs no writing, and return its draft."""
    drafted = draft(open_checkpoint(directory), request)
    if not request.resume and request.part is None:
        _making(directory, request).check_out()
    if request.check_finite:
        from upcycle.plan.finite import check_finite, tensors_read  # NumPy is met only where values are looked at

        for spec in tensors_read(drafted.plan.writes):
            check_finite(spec)
    return drafted


def convert(directory: Path, request: Convert, start: Callable[[int], Advance]) -> Draft:
    """Convert the checkpoint in `directory` into `request.out`, or a part of it; see `upcycle.plan.make.make`."""
    making = _making(directory, request)
    drafted = draft(open_checkpoint(directory), request)
    plan = drafted.plan

    def receipt(hashes: Mapping[str, str], files: Mapping[str, bytes]) -> bytes:
        origin = Origin.of(directory, plan.sources)
        record = record_of(request, origin)
        return receipt_bytes(plan, record=record, source=origin.as_json(), hashes=hashes, side_files=files)

    return replace(drafted, left=make(plan, making, receipt, start))


def beside(directory: Path) -> dict[str, bytes]:
    """Return what stands beside an output and is not of its plan: the lineage of the dense model, if it has one."""
    before = lineage(directory)
    return {LINEAGE_FILE: lineage_bytes(before)} if before else {}


def _making(directory: Path, request: Convert) -> Making:
    named = [Path(name) for name in (request.model, request.tokenizer) if name is not None]
    return Making(
        output_path(request.out),
        # what is read, and where it came from when that is another place
        models=(directory, *(path for path in named if path.is_dir())),
        workers=worker_count(request.workers),
        part=Part(*request.share()),
        overwrite=request.overwrite,
        resume=request.resume,
        check_finite=request.check_finite,
        beside=beside(directory),
    )
