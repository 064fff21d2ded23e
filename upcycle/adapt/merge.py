"""Carrying out a merge: planned, written, proven before it gets its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from upcycle.adapt.changes import refuse_unchanged
from upcycle.adapt.draft import Draft, changes_of
from upcycle.build.adapter_experts import AdapterExperts, open_experts
from upcycle.build.merge import check_mergeable, plan_merge
from upcycle.checkpoint.lineage import LINEAGE_FILE, lineage, lineage_bytes
from upcycle.checkpoint.reader import Checkpoint, open_checkpoint
from upcycle.errors import UnsupportedError, UpcycleError
from upcycle.families.base import adapter_base
from upcycle.families.find import refuse_other_kinds
from upcycle.families.match import match
from upcycle.families.pairs import DENSE
from upcycle.message import quoted
from upcycle.plan.account import Account, account
from upcycle.plan.execute import Advance
from upcycle.plan.make import Making, make, output_path, worker_count
from upcycle.plan.plan import Plan
from upcycle.plan.receipt import Origin, as_text, receipt_bytes
from upcycle.plan.report import Report
from upcycle.requests import recorded
from upcycle.requests.merge import Merge


@dataclass(frozen=True, slots=True)
class Merged:
    """A merge that has been checked and counted, and may have been done."""

    plan: Plan
    account: Account
    base_bytes: int  # of the base's weights on disk
    adapter_bytes: int  # of the adapter's
    report: Report | None = None  # None: nothing has been written

    def as_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        counted = {**self.account.as_json(), "base_bytes": self.base_bytes, "adapter_bytes": self.adapter_bytes}
        return counted if self.report is None else {**counted, "proof": self.report.as_json()}


def rehearse(adapter: Path, base: Path, request: Merge) -> Merged:
    """Make every check of a merge that needs no writing; see `merge` for what it raises."""
    merged = _counted(*_drafted(adapter, base, request))
    if not request.resume:
        _making(adapter, base, request).check_out()
    return merged


def merge(adapter: Path, base: Path, request: Merge, start: Callable[[int], Advance]) -> Merged:
    """Write the model of `base` with the experts of `adapter` to `request.out`, as a checkpoint of stock transformers.

    `start` is called with the bytes to write once all checks have passed, and returns what is told the bytes as they
    are written. Raises InputError before a byte is written; UpcycleError when what was written does not compute what
    the adapter does, and then there is no OUT. Else as `upcycle.plan.make.make`.
    """
    from upcycle.adapt.proof import prove

    drafted, checkpoint, saved = _drafted(adapter, base, request)
    wide = drafted if drafted.plan.exact else _drafted(adapter, base, replace(request, dtype="f32"))[0]
    reports: list[Report] = []

    def check(output: Path) -> None:
        reports.append(prove(drafted, wide, checkpoint, adapter, output, request))
        failed = [f"{line.name}: {line.text}" for line in reports[-1].lines if line.verdict == "FAIL"]
        if failed:
            raise UpcycleError(f"{request.out}: the merge does not compute what the adapter does; {'; '.join(failed)}")

    def receipt(hashes: Mapping[str, str], files: Mapping[str, bytes]) -> bytes:
        origin = Origin.of(base, checkpoint.headers)
        record = {"command": "merge", **recorded(request), "adapter": as_text(adapter.resolve().name)}
        return receipt_bytes(drafted.plan, record=record, source=origin.as_json(), hashes=hashes, side_files=files)

    before = lineage(adapter)
    making = _making(adapter, base, request, {LINEAGE_FILE: lineage_bytes(before)} if before else {})
    make(drafted.plan, making, receipt, start, check)
    if not reports:  # --resume found it complete
        check(making.out)
    return replace(_counted(drafted, checkpoint, saved), report=reports[-1])


def _drafted(adapter: Path, base: Path, request: Merge) -> tuple[Draft, Checkpoint, AdapterExperts]:
    checkpoint = open_checkpoint(base)
    _refuse_without_target(checkpoint)
    saved = open_experts(adapter, adapter_base(checkpoint))
    saved.adapter.check_base(base)
    check_mergeable(saved, request)
    matched = match(checkpoint, target=request.target, form=request.to)
    plan = plan_merge(checkpoint, matched, saved, request)
    drafted = Draft(plan, tuple(changes_of(plan, checkpoint, matched, saved, compact=request.to == "compact")))
    refuse_unchanged(drafted, adapter)
    return drafted, checkpoint, saved


def _refuse_without_target(checkpoint: Checkpoint) -> None:
    refuse_other_kinds(checkpoint.config)
    if checkpoint.config.get("model_type") not in DENSE:
        raise UnsupportedError(
            "no mixture of experts of transformers is known that computes what this model and its adapter do, so there "
            "is nothing to merge them into",
            where=checkpoint.directory,
            found=f"model_type {quoted(checkpoint.config.get('model_type'))}",
            hint="it stays an adapter: `upcycle train` and `upcycle generate` take it as it is, and so does peft after "
            "`import upcycle.adapters`",
        )


def _counted(drafted: Draft, checkpoint: Checkpoint, saved: AdapterExperts) -> Merged:
    return Merged(
        plan=drafted.plan,
        account=account(drafted.plan, worker_count()),
        base_bytes=sum(header.size for header in checkpoint.headers.values()),
        adapter_bytes=saved.weights.stat().st_size,
    )


def _making(adapter: Path, base: Path, request: Merge, beside: Mapping[str, bytes] = MappingProxyType({})) -> Making:
    return Making(
        output_path(request.out),
        models=(base, adapter),
        workers=worker_count(),
        overwrite=request.overwrite,
        resume=request.resume,
        beside=beside,
    )
