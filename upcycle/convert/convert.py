"""Carrying out a conversion: plan, stage, write, receipt, rename."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upcycle.checkpoint.header import read_header
from upcycle.checkpoint.journal import Part
from upcycle.checkpoint.place import RECEIPT_FILE, check_out, staging_path
from upcycle.checkpoint.reader import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, Checkpoint, hub_blob, open_checkpoint
from upcycle.checkpoint.staging import Staging, finish_commit, open_staging, sweep
from upcycle.checkpoint.strict_json import read_object
from upcycle.checkpoint.writer import write_durably
from upcycle.convert.account import Account, account
from upcycle.convert.build import build_plan
from upcycle.convert.receipt import Origin, read_receipt, write_receipt
from upcycle.convert.routers import router_warning
from upcycle.errors import CheckpointError, InputError, StagingError, UpcycleError
from upcycle.plan.execute import Advance, check_space, execute, is_done, share
from upcycle.plan.plan import Plan, source_files
from upcycle.plan.sources import reads
from upcycle.recipe import Conversion, Convert

MAX_WORKERS = 8
"""More threads than this do not make a disk faster."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A conversion that has been checked and counted, and may have been done."""

    plan: Plan
    account: Account
    warning: str | None  # about a router that starts badly
    left: tuple[str, ...] = ()  # shards that other parts of the work have yet to write; OUT is not there until then


def draft(checkpoint: Checkpoint, request: Conversion) -> Draft:
    """Plan the conversion of `checkpoint`; see `build_plan` for what it raises."""
    plan = build_plan(checkpoint, request)
    return Draft(plan, account(plan, _workers(request)), router_warning(request))


def rehearse(directory: Path, request: Convert) -> Draft:
    """Make every check of a conversion that needs no writing, and return its draft."""
    drafted = draft(open_checkpoint(directory), request)
    if not request.resume and request.part is None:
        check_out(_out(request), _sources(directory, request), overwrite=request.overwrite)
    if request.check_finite:
        from upcycle.plan.finite import check_finite, distinct  # NumPy is met only where values are looked at

        for spec in distinct(reads(write.source) for write in drafted.plan.writes):
            check_finite(spec)
    return drafted


def convert(directory: Path, request: Convert, start: Callable[[int], Advance]) -> Draft:
    """Convert the checkpoint in `directory` into `request.out`, or a part of it.

    `start` is called with the bytes to write once all checks have passed, and returns what is told the bytes as they
    are written. OUT appears by one rename when everything is on disk, whichever part comes last. Raises InputError
    before a byte is written, StagingError when the disk fails; an interrupted conversion stays in `OUT.partial` for
    `resume`.
    """
    out = _out(request)
    part = Part(*request.share())
    drafted = draft(open_checkpoint(directory), request)
    plan = drafted.plan
    shards = share(plan, part)
    check = _watch(plan, directory)
    fingerprint = {"plan": plan.hash, "parts": part.count, **_identities(plan)}
    if not shards:  # more parts than shards: the others may be done before this one begins
        return replace(drafted, left=tuple(shard.name for shard in plan.shards))
    again = request.resume or part.count > 1
    try:
        if again and (finish_commit(out, fingerprint) or _is_complete(out, plan)):
            sweep(out, fingerprint)
            return drafted
        check_out(out, _sources(directory, request), overwrite=request.overwrite)
        with open_staging(out, fingerprint, part=part, resume=request.resume, overwrite=request.overwrite) as staging:
            check_space(shards, staging)
            advance = start(sum(shard.size for shard in shards))
            finite, workers = request.check_finite, _workers(request)
            execute(shards, staging, workers=workers, finite=finite, advance=advance, check=check)
            check()
            left = _join(staging, drafted, request, Origin.of(directory, plan.sources))
    except OSError as error:
        place = staging_path(out) if os.path.lexists(staging_path(out)) else out
        raise StagingError("; ".join([f"{error.filename or place}: {error.strerror}", *_kept(out)])) from error
    except BaseException as error:  # Ctrl-C and SIGTERM: whoever reports them can say what is left
        if not isinstance(error, UpcycleError):
            for note in _kept(out):
                error.add_note(note)
        raise
    return replace(drafted, left=left)


def _watch(plan: Plan, directory: Path) -> Callable[[], None]:
    """Return what raises CheckpointError when a file that `plan` reads is no longer the one that was planned with.

    The headers are read once more after the first look, for a file may have been replaced in between.
    """
    files = [*source_files(plan.shards), *plan.files.values()]

    def look() -> list[tuple[int, ...]]:
        facts = (path.stat() for path in files)
        return [(fact.st_dev, fact.st_ino, fact.st_size, fact.st_mtime_ns) for fact in facts]

    def check() -> None:
        if look() != first:
            raise CheckpointError("the model changed while it was converted", where=directory, hint="convert it again")

    first = look()
    headers = {path.name: read_header(path).sha256 for path in source_files(plan.shards)}
    if any(plan.sources[name]["header_sha256"] != digest for name, digest in headers.items()):
        raise CheckpointError("the model changed while it was planned", where=directory, hint="convert it again")
    return check


def _is_complete(out: Path, plan: Plan) -> bool:
    """Whether `out` holds just what `plan` would make of the model as it is now: every tensor and file is compared.

    Equal plans are not enough, for a fine-tune has the headers of its model.
    """
    if not (out / RECEIPT_FILE).is_file() or read_object(out / RECEIPT_FILE).get("plan") != plan.hash:
        return False
    from upcycle.convert.compare import compare_tensors

    moe = open_checkpoint(out)
    if any(not (out / name).is_file() or (out / name).read_bytes() != data for name, data in _side_files(plan).items()):
        return False
    found = compare_tensors(plan, moe, read_receipt(moe), MAX_WORKERS, lambda _: None)
    return found.sound and not found.redrawn


def _join(staging: Staging, drafted: Draft, request: Convert, origin: Origin) -> tuple[str, ...]:
    """If every shard is there, write what stands beside them and give the output its name; return those still missing.

    The last part to finish does it; the lock lets the others look only before or after.
    """
    plan = drafted.plan
    with staging.joined() as done:
        if done is None:  # another part was last
            return ()
        left = tuple(shard.name for shard in plan.shards if not is_done(shard, staging))
        if left:
            return left
        hashes = {name: digest for shard in plan.shards for name, digest in sorted(done[shard.name].items())}
        files = _side_files(plan)
        receipt = write_receipt(plan, drafted.account, request, hashes, origin, files)
        for name, data in {**files, RECEIPT_FILE: receipt}.items():
            write_durably(staging.path / name, data)
        staging.commit()
    return ()


def _kept(out: Path) -> list[str]:
    """What is left of work that was cut off, as a sentence; none when nothing is."""
    staging = staging_path(out)
    return (
        [f"what is finished is kept in {staging}, and --resume continues from it"] if os.path.lexists(staging) else []
    )


def _out(request: Convert) -> Path:
    try:
        return Path(request.out).expanduser()
    except RuntimeError as error:  # the home of nobody
        raise InputError(f"is no place for an output ({error})", where=request.out) from None


def _sources(directory: Path, request: Convert) -> tuple[Path, ...]:
    """The directories that OUT must not touch: what is read, and where it came from when that is another place."""
    named = [Path(name) for name in (request.model, request.tokenizer) if name is not None]
    return (directory, *(path for path in named if path.is_dir()))


def _workers(request: Conversion) -> int:
    return getattr(request, "workers", 0) or min(MAX_WORKERS, os.cpu_count() or 1)


def _identities(plan: Plan) -> dict[str, Any]:
    """What tells the files that are read from others of their names: a resumed conversion must not mix two versions of
    a model, and parts on several machines must read the same one.

    In the Hub's cache the blob's name, its hash, wherever the cache is; elsewhere when the file was last changed.
    """
    files = {path.name: path for path in source_files(plan.shards)} | dict(plan.files)
    return {
        f"blob of {name}" if (blob := hub_blob(path)) else f"mtime of {name}": blob or path.stat().st_mtime_ns
        for name, path in sorted(files.items())
    }


def _side_files(plan: Plan) -> dict[str, bytes]:
    """What stands beside the weights: config, index, and the tokenizer's and generation's files byte for byte."""
    files = {name: path.read_bytes() for name, path in plan.files.items()}
    if [shard.name for shard in plan.shards] != [SINGLE_FILE]:
        total = sum(write.nbytes for write in plan.writes)
        files[INDEX_FILE] = _json({"metadata": {"total_size": total}, "weight_map": plan.weight_map()})
    return {**files, CONFIG_FILE: _json(dict(plan.config))}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
