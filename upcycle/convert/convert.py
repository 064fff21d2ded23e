"""Carrying out a conversion: plan, stage, write, receipt, rename."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upcycle.checkpoint.reader import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from upcycle.checkpoint.staging import RECEIPT_FILE, Staging, check_out, finish_commit, open_staging, staging_path
from upcycle.checkpoint.writer import copy_range, write_durably
from upcycle.convert.account import Account, account
from upcycle.convert.build import build_plan
from upcycle.convert.receipt import Origin, write_receipt
from upcycle.convert.routers import router_warning
from upcycle.errors import StagingError, UpcycleError
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


def convert(directory: Path, request: Convert, start: Callable[[Plan], Advance]) -> Draft:
    """Convert the checkpoint in `directory` into `request.out`.

    `start` is called with the plan once all checks have passed, and returns what is told the bytes as they are written.
    OUT appears by one rename when everything is on disk. Raises InputError before a byte is written, StagingError when
    the disk fails; an interrupted conversion stays in `OUT.partial` for `resume`.
    """
    out = Path(request.out)
    drafted = draft(directory, request)
    sources = (directory, *(Path(path) for path in (request.tokenizer,) if path is not None))
    fingerprint = {"plan": drafted.plan.hash, **_modified(drafted.plan)}
    if request.resume and finish_commit(out, fingerprint):
        return drafted
    check_out(out, sources, overwrite=request.overwrite)
    try:
        with open_staging(out, fingerprint, resume=request.resume, overwrite=request.overwrite) as staging:
            check_space(drafted.plan, staging)
            hashes = execute(drafted.plan, staging, workers=_workers(request), advance=start(drafted.plan))
            receipt = write_receipt(drafted.plan, drafted.account, request, hashes, Origin.of(directory))
            _write_side_files(drafted.plan, staging, receipt)
            staging.commit()
    except OSError as error:
        raise StagingError(f"{error.filename or staging_path(out)}: {error.strerror}; {_kept(out)}") from error
    except BaseException as error:  # Ctrl-C and SIGTERM: whoever reports them can say what is left
        if staging_path(out).exists() and not isinstance(error, UpcycleError):
            error.add_note(_kept(out))
        raise
    return drafted


def _kept(out: Path) -> str:
    return f"what is finished is kept in {staging_path(out)}, and --resume continues from it"


def _workers(request: Conversion) -> int:
    return getattr(request, "workers", 0) or min(MAX_WORKERS, os.cpu_count() or 1)


def _modified(plan: Plan) -> dict[str, int]:
    """When each file was last changed: a resumed conversion must not mix two versions of a model or tokenizer."""
    files = {path.name: path for path in plan.source_files()} | dict(plan.files)
    return {f"mtime of {name}": path.stat().st_mtime_ns for name, path in sorted(files.items())}


def _write_side_files(plan: Plan, staging: Staging, receipt: bytes) -> None:
    """Config, index, tokenizer and receipt, after the weights; the receipt last."""
    for name, path in plan.files.items():
        with path.open("rb", buffering=0) as source, (staging.path / name).open("wb", buffering=0) as target:
            copy_range(source, 0, target, 0, path.stat().st_size, lambda _: None)
            os.fsync(target.fileno())
    if [shard.name for shard in plan.shards] != [SINGLE_FILE]:
        total = sum(write.nbytes for write in plan.writes)
        index = {"metadata": {"total_size": total}, "weight_map": plan.weight_map()}
        write_durably(staging.path / INDEX_FILE, _json(index))
    write_durably(staging.path / CONFIG_FILE, _json(dict(plan.config)))
    write_durably(staging.path / RECEIPT_FILE, receipt)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
