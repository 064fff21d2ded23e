"""Converts straight to the Hub: each shard is made, committed to a working branch, and deleted here.

At the end one commit puts all of it on main, by reference to what the branch holds, and the branch is removed. A run
that was interrupted resumes from the branch; nothing is kept on this machine.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from upcycle import requests
from upcycle.checkpoint import lock
from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.header import Shapes
from upcycle.checkpoint.lock import Lock
from upcycle.checkpoint.place import RECEIPT_FILE
from upcycle.checkpoint.reader import hub_blob, open_checkpoint
from upcycle.checkpoint.staging import Staging
from upcycle.convert.convert import Draft, beside, draft
from upcycle.convert.receipt import record_of
from upcycle.errors import StagingError, UnreachableError, UpcycleError
from upcycle.foreign.cache import cache_directory
from upcycle.pipeline.publish import card_writer
from upcycle.plan.execute import execute
from upcycle.plan.make import identities, side_files, watch, worker_count
from upcycle.plan.plan import Plan, Shard, source_files
from upcycle.plan.receipt import Origin, receipt_bytes

if TYPE_CHECKING:
    from upcycle.hub.branch import Finished, WorkingBranch
    from upcycle.hub.contents import Contents
    from upcycle.hub.push import Pushed

_KEPT = "what is on the Hub stays there, and the same command continues with it"

_log = logging.getLogger("upcycle")


@dataclass(frozen=True, slots=True)
class Streamed(Draft):
    """A conversion that went to the Hub."""

    pushed: "Pushed | None" = None  # None of a dry run


def stream(directory: Path, request: requests.Convert) -> Streamed:
    """Convert the checkpoint in `directory` into the repository `request.stream_to`.

    Raises as a conversion into a directory does, and as `upcycle.hub.push.push`; before a shard is made, every check
    that needs none has passed.
    """
    from upcycle.hub.branch import WorkingBranch
    from upcycle.hub.push import already, make, open_target, publish
    from upcycle.hub.secrets import refuse_secrets
    from upcycle.hub.target import MAIN
    from upcycle.moe.fit import check_fit

    opened = open_target(request.stream_to or "", private=request.private)
    drafted = draft(open_checkpoint(directory), request)
    plan, check = drafted.plan, watch(drafted.plan, directory)
    fingerprint = _fingerprint(plan)
    mark = f"upcycle {fingerprint}"  # of the commit on main, by which a run of the same work knows that it is done
    with _scratch(fingerprint) as scratch:
        files = {**side_files(plan), **beside(directory)}
        _write(scratch, files)
        check_fit(scratch, shapes_of(plan))
        refuse_secrets(_contents(scratch, plan, files, {}))
        if request.dry_run:
            return _streamed(drafted, None)
        done = already(opened, mark, [shard.name for shard in plan.shards])
        branch = WorkingBranch(opened.target, f"upcycle-{fingerprint}")
        if done:
            branch.remove()  # if the run that put it there was killed before it could
            return _streamed(drafted, done)
        make(opened)
        finished = _make_all(plan, branch, scratch, request, check)
        files[RECEIPT_FILE] = _receipt(directory, request, plan, finished, files)
        _write(scratch, files)
        contents = _contents(scratch, plan, files, finished)
        title = f"Upload {contents.kind} by upcycle"
        pushed = publish(opened, contents, card_writer(contents, None), lambda: MAIN, title, mark=mark)
        branch.remove()
        return _streamed(drafted, pushed)


def _fingerprint(plan: Plan) -> str:
    """Return a hash that only this work has: of the plan and of the files that it reads.

    For a file whose name is not its hash, the time when its entry changed counts too: an archive may give two
    fine-tunes of one model the same modification time.
    """
    files = [path for path in (*source_files(plan.shards), *plan.files.values()) if not hub_blob(path)]
    changed = sorted((path.name, path.stat().st_ctime_ns) for path in files)
    return sha256_of(json.dumps([plan.hash, identities(plan), changed]).encode())[:16]


@contextmanager
def _scratch(fingerprint: str) -> Iterator[Path]:
    """Yield an empty directory in the cache and remove it afterwards; errors get a note on how to continue.

    Raises StagingError when another process makes the same, or the disk fails.
    """
    scratch = cache_directory() / "stream" / fingerprint
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        _sweep(scratch.parent)
        held = lock.take(scratch.with_suffix(".lock"), what="the same conversion")
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            _remove(held, scratch.with_suffix(".lock"))
    except OSError as error:
        raise StagingError(f"{error.filename or scratch}: {error.strerror or error}; {_KEPT}") from error
    except BaseException as error:
        if isinstance(error, UnreachableError) or not isinstance(error, UpcycleError):
            error.add_note(_KEPT)
        raise


def _sweep(folder: Path) -> None:
    """Remove the directories of runs that were killed."""
    for left in filter(Path.is_dir, folder.iterdir()):
        with suppress(StagingError):  # in use
            held = lock.take(left.with_suffix(".lock"))
            shutil.rmtree(left, ignore_errors=True)
            _remove(held, left.with_suffix(".lock"))


def _remove(held: Lock, path: Path) -> None:
    """Remove the file of a lock while it is held, so that it cannot be another process's, and release it.

    Windows removes no file that is open; there it stays.
    """
    with suppress(OSError):
        path.unlink()
    held.release()


def shapes_of(plan: Plan) -> Shapes:
    """Return the tensors that a plan writes."""
    return {write.name: (write.dtype, write.shape) for write in plan.writes}


def _make_all(
    plan: Plan, branch: "WorkingBranch", scratch: Path, request: requests.Convert, check: Callable[[], None]
) -> dict[str, "Finished"]:
    """Bring to the branch every shard that it lacks, one at a time."""
    finished = branch.finished()
    for shard in plan.shards:
        if _is_finished(shard, finished):
            continue
        finished[shard.name] = branch.put(*_make(shard, scratch, request, check))
        (scratch / shard.name).unlink()
        there = sum(_is_finished(one, finished) for one in plan.shards)
        _log.info("%s: on the Hub, %s of %s", shard.name, there, len(plan.shards))
    return finished


def _is_finished(shard: Shard, finished: Mapping[str, "Finished"]) -> bool:
    """Whether a shard is on the branch, whose name is a hash of all inputs: so the same name is the same shard."""
    entry = finished.get(shard.name)
    hashed = {write.name for write in shard.writes if write.hashed}
    return entry is not None and entry.file.size == shard.size and entry.hashes.keys() == hashed


def _make(
    shard: Shard, scratch: Path, request: requests.Convert, check: Callable[[], None]
) -> tuple[Path, Mapping[str, str]]:
    """Write one shard; return its path and the hashes of what was computed in it."""
    staging = Staging(scratch, scratch)
    _check_space(shard, scratch)
    workers = worker_count(request.workers)
    execute([shard], staging, workers=workers, finite=request.check_finite, advance=lambda _: None, check=check)
    check()
    return scratch / shard.name, staging.done[shard.name]


def _check_space(shard: Shard, scratch: Path) -> None:
    """Raise StagingError when the disk cannot hold one shard."""
    free = shutil.disk_usage(scratch).free
    if shard.size > free:
        raise StagingError(
            f"{scratch.parent}: not enough space for {shard.name}; found {free:,} bytes free, expected "
            f"{shard.size:,}; UPCYCLE_CACHE names a directory on another disk; {_KEPT}"
        )


def _receipt(
    directory: Path,
    request: requests.Convert,
    plan: Plan,
    finished: Mapping[str, "Finished"],
    files: Mapping[str, bytes],
) -> bytes:
    """Return the receipt, the same as of a conversion into a directory."""
    hashes = {name: digest for shard in plan.shards for name, digest in sorted(finished[shard.name].hashes.items())}
    origin = Origin.of(directory, plan.sources)
    said = record_of(request, origin)
    return receipt_bytes(plan, record=said, source=origin.as_json(), hashes=hashes, side_files=files)


def _contents(scratch: Path, plan: Plan, files: Mapping[str, bytes], finished: Mapping[str, "Finished"]) -> "Contents":
    from upcycle.hub.contents import Contents, Item

    shards = [Item(shard.name, finished[shard.name].file) for shard in plan.shards if shard.name in finished]
    items = [*shards, *(Item(name, data) for name, data in files.items())]
    ordered = tuple(sorted(items, key=lambda item: item.name))
    return Contents(scratch, "model", plan.config, shapes_of(plan), ordered, ())


def _write(scratch: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (scratch / name).write_bytes(data)


def _streamed(drafted: Draft, pushed: "Pushed | None") -> Streamed:
    return Streamed(drafted.plan, drafted.account, drafted.warnings, left=drafted.left, pushed=pushed)
