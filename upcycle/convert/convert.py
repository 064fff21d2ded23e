"""Carrying out a conversion: plan, stage, write, receipt, rename."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upcycle.checkpoint.reader import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from upcycle.checkpoint.staging import RECEIPT_FILE, check_out, finish_commit, open_staging, staging_path
from upcycle.checkpoint.writer import write_durably
from upcycle.convert.account import Account, account
from upcycle.convert.build import build_plan
from upcycle.convert.receipt import Origin, write_receipt
from upcycle.convert.routers import router_warning
from upcycle.errors import CheckpointError, StagingError, UpcycleError
from upcycle.plan.execute import Advance, check_space, execute
from upcycle.plan.plan import Plan
from upcycle.recipe import Conversion, Convert

MAX_WORKERS = 8
"""More threads than this do not make a disk faster."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A conversion that has been checked and counted, but not done."""

    plan: Plan
    account: Account
    warning: str | None  # about a router that starts badly


def draft(directory: Path, request: Conversion) -> Draft:
    """Plan the conversion of the checkpoint in `directory`; see `build_plan` for what it raises."""
    plan = build_plan(directory, request)
    return Draft(plan, account(plan, _workers(request)), router_warning(request))


def rehearse(directory: Path, request: Convert) -> Draft:
    """Make every check of a conversion that needs no writing, and return its draft."""
    drafted = draft(directory, request)
    if not request.resume:
        check_out(Path(request.out).expanduser(), _sources(directory, request), overwrite=request.overwrite)
    return drafted


def convert(directory: Path, request: Convert, start: Callable[[Plan], Advance]) -> Draft:
    """Convert the checkpoint in `directory` into `request.out`.

    `start` is called with the plan once all checks have passed, and returns what is told the bytes as they are written.
    OUT appears by one rename when everything is on disk. Raises InputError before a byte is written, StagingError when
    the disk fails; an interrupted conversion stays in `OUT.partial` for `resume`.
    """
    out = Path(request.out).expanduser()
    drafted = draft(directory, request)
    modified = _modified(drafted.plan)
    fingerprint = {"plan": drafted.plan.hash, **modified}
    try:
        if request.resume and finish_commit(out, fingerprint):
            return drafted
        check_out(out, _sources(directory, request), overwrite=request.overwrite)
        with open_staging(out, fingerprint, resume=request.resume, overwrite=request.overwrite) as staging:
            check_space(drafted.plan, staging)
            hashes = execute(drafted.plan, staging, workers=_workers(request), advance=start(drafted.plan))
            files = _side_files(drafted.plan)
            receipt = write_receipt(drafted.plan, drafted.account, request, hashes, Origin.of(directory), files)
            for name, data in {**files, RECEIPT_FILE: receipt}.items():
                write_durably(staging.path / name, data)
            if _modified(drafted.plan) != modified:
                raise CheckpointError(
                    "the model changed while it was converted", where=directory, hint="convert it again"
                )
            staging.commit()
    except OSError as error:
        place = staging_path(out) if os.path.lexists(staging_path(out)) else out
        raise StagingError("; ".join([f"{error.filename or place}: {error.strerror}", *_kept(out)])) from error
    except BaseException as error:  # Ctrl-C and SIGTERM: whoever reports them can say what is left
        if not isinstance(error, UpcycleError):
            for note in _kept(out):
                error.add_note(note)
        raise
    return drafted


def _kept(out: Path) -> list[str]:
    """What is left of work that was cut off, as a sentence; none when nothing is."""
    staging = staging_path(out)
    return (
        [f"what is finished is kept in {staging}, and --resume continues from it"] if os.path.lexists(staging) else []
    )


def _sources(directory: Path, request: Convert) -> tuple[Path, ...]:
    return (directory,) if request.tokenizer is None else (directory, Path(request.tokenizer))


def _workers(request: Conversion) -> int:
    return getattr(request, "workers", 0) or min(MAX_WORKERS, os.cpu_count() or 1)


def _modified(plan: Plan) -> dict[str, int]:
    """When each file was last changed: a resumed conversion must not mix two versions of a model or tokenizer."""
    files = {path.name: path for path in plan.source_files()} | dict(plan.files)
    return {f"mtime of {name}": path.stat().st_mtime_ns for name, path in sorted(files.items())}


def _side_files(plan: Plan) -> dict[str, bytes]:
    """What stands beside the weights: config, index, and the tokenizer's and generation's files byte for byte."""
    files = {name: path.read_bytes() for name, path in plan.files.items()}
    if [shard.name for shard in plan.shards] != [SINGLE_FILE]:
        total = sum(write.nbytes for write in plan.writes)
        files[INDEX_FILE] = _json({"metadata": {"total_size": total}, "weight_map": plan.weight_map()})
    return {**files, CONFIG_FILE: _json(dict(plan.config))}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
