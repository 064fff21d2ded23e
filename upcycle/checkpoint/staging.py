"""Builds an output in a staging directory beside OUT, and gives it its name in one rename when it is complete.

`OUT.partial/` holds finished and unfinished shards and what `upcycle.checkpoint.journal` says about them. A kill costs
at most the shards in progress. Several machines may write to it, each its part; whoever is last to finish gives it its
name. The journals go only after that, `state.jsonl` last: a staging directory without it is an output that was
replaced.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upcycle.checkpoint import journal, lock
from upcycle.checkpoint.journal import LOCK_FILE, STATE_FILE, WHOLE, Done, Part
from upcycle.checkpoint.lock import Lock
from upcycle.checkpoint.place import REPLACED, check_out, exchange, put, restore, staging_path
from upcycle.checkpoint.writer import sync_directory
from upcycle.errors import InputError, StagingError


@dataclass
class Staging:
    """An open staging directory; made by `open_staging`."""

    out: Path
    path: Path
    part: Part = WHOLE
    overwrite: bool = False
    done: Done = field(default_factory=dict)  # finished shards, of all parts
    locks: list[Lock] = field(default_factory=list)  # held by this process

    def record(self, shard: str, hashes: Mapping[str, str]) -> None:
        """Note durably that `shard`, whose bytes are already synced, is complete."""
        journal.record(self.path / self.part.journal, shard, hashes)
        self.done[shard] = dict(hashes)

    @contextmanager
    def joined(self) -> Iterator[Done | None]:
        """Hold the whole directory and give what all parts have finished; None where another part has joined them.

        While it is held nobody begins, and nobody else ends.
        """
        try:
            held = lock.take(self.path / LOCK_FILE, create=False, patience=lock.PATIENCE)
        except FileNotFoundError:
            yield None
            return
        self.locks.append(held)
        with _released(held):
            self.done = journal.read_done(self.path)
            yield self.done

    def commit(self) -> None:
        """Rename the finished directory to OUT; what OUT held before is removed only afterwards."""
        try:
            check_out(self.out, (), overwrite=self.overwrite)  # again: hours may have passed
        except InputError as error:
            raise StagingError(f"{error}; what is finished is kept in {self.path}") from None
        sync_directory(self.path)
        if os.name == "nt":  # Windows renames no directory in which a file is open
            self.release()
        if self.out.exists() and any(self.out.iterdir()):
            _exchange(self.path, self.out)
        else:
            put(self.path, self.out)
        _clean_up(self.out)

    def release(self) -> None:
        """Let go of all locks."""
        for held in self.locks:
            held.release()


def _exchange(staged: Path, out: Path) -> None:
    try:
        exchange(staged, out)
    except OSError as error:
        if error.errno != errno.EXDEV:  # a directory in the lower layer of an overlay, as containers have them
            raise
        raise StagingError(
            f"{out}: this file system cannot rename the directory; what is finished is kept in {staged}: "
            "move OUT away yourself, and --resume puts the new one in its place"
        ) from error


def finish_commit(out: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Whether `out` is complete, made by the same work and cut off after the rename; if so, remove what that left."""
    if not (out / STATE_FILE).is_file() or journal.read_fingerprint(out) != fingerprint:
        return False
    try:
        with _after_cleanup(out):
            _clean_up(out)
    except OSError as error:
        raise _in_place(out, error) from error
    return True


def sweep(out: Path, fingerprint: Mapping[str, Any]) -> None:
    """Remove a staging directory that holds nothing, or the same work as is complete in `out`; not one in use."""
    staging = Staging(out, staging_path(out), Part(0, 0))  # no part of its own: all locks count
    if not staging.path.is_dir() or staging.path.is_symlink():
        return
    if not _holds_work(staging.path) or journal.read_fingerprint(staging.path) == fingerprint:
        _abandon(staging)


@contextmanager
def _after_cleanup(out: Path) -> Iterator[None]:
    """Wait until another process has cleaned up after its rename; if it was killed in that, lock what it left."""
    with ExitStack() as held:
        with suppress(FileNotFoundError):
            held.enter_context(_released(lock.take(out / LOCK_FILE, create=False, patience=lock.PATIENCE)))
        yield


@contextmanager
def open_staging(
    out: Path, fingerprint: Mapping[str, Any], *, part: Part = WHOLE, resume: bool, overwrite: bool
) -> Iterator[Staging]:
    """Open the staging directory of `out` for work described by `fingerprint`, a JSON value, and lock a part of it.

    With `resume`, or where there are several parts, finished shards of the same fingerprint are kept; with `overwrite`,
    an unfinished one is discarded. A refusal inside removes it, since going on would meet it again, but for several
    parts. Raises InputError when an unfinished output is in the way, StagingError when another process writes
    the same part.
    """
    staging = Staging(out, staging_path(out), part, overwrite)
    alone, new, opened = part.count == 1, False, False
    out.parent.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(staging)
    with _after_cleanup(out):
        staging.path.mkdir(exist_ok=True)
    try:
        with _after_cleanup(out), _released(lock.take(staging.path / LOCK_FILE, patience=lock.PATIENCE)):
            new = not (staging.path / part.lock).exists()
            staging.locks.append(lock.take(staging.path / part.lock, what=part.words))
            _begin(staging, fingerprint, resume=resume or not alone, overwrite=overwrite and alone)
        journal.mend(staging.path / part.journal)
        staging.done = journal.read_done(staging.path)
        opened = True
        yield staging
    except BaseException as error:
        nothing = (opened or isinstance(error, OSError)) and not _holds_work(staging.path)
        if nothing or (opened and alone and isinstance(error, InputError)):
            _abandon(staging)
        elif new and not opened and staging.locks:  # a refusal leaves no trace
            (staging.path / part.lock).unlink(missing_ok=True)
        raise
    finally:
        staging.release()


def _begin(staging: Staging, fingerprint: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Find that the same work has begun in the directory, or that it is free or may be cleared, and begin."""
    path = staging.path
    restore(staging.out)
    if _is_replaced_output(staging.out) or (overwrite and not resume):
        _clear(staging)
    if staging.out.is_dir():
        _remove_bookkeeping(staging.out)  # of an earlier commit that was cut off
    begun = journal.read_fingerprint(path)
    if begun is not None and not resume:
        raise InputError(
            "an unfinished output is there",
            where=path,
            hint="--resume continues it, --overwrite starts again",
        )
    if begun is None:
        journal.write_fingerprint(path, fingerprint)
        sync_directory(path)
    elif begun != fingerprint:
        raise InputError(
            "the unfinished output there has another plan or another source",
            where=path,
            found=_difference(begun, fingerprint) or None,
            expected=_difference(fingerprint, begun) or None,
            hint=_way_out(staging, begun, fingerprint),
        )


def _way_out(staging: Staging, begun: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> str:
    """Return a hint on what to do about other work in the staging directory; a part never removes what others wrote."""
    differing = {name for name in begun.keys() | fingerprint.keys() if begun.get(name) != fingerprint.get(name)}
    if staging.part.count == 1:
        return "--overwrite without --resume starts again"
    if all(name.startswith("mtime of") for name in differing):
        return f"a copy of the model needs its time stamps too (cp -p, rsync -t), or remove {staging.path}"
    others = f"go on with --part I/{begun.get('parts')}, or " if differing == {"parts"} else ""
    return f"{others}remove {staging.path} to start again"


@contextmanager
def _released(held: Lock) -> Iterator[None]:
    try:
        yield
    finally:
        held.release()


def _clean_up(out: Path) -> None:
    """After the rename: the output that was replaced goes, then the journals, which tell that it was replaced."""
    try:
        sync_directory(out.parent)
        if _is_replaced_output(out):
            _remove(staging_path(out))
            sync_directory(out.parent)
        _remove_bookkeeping(out)
        sync_directory(out)
    except OSError as error:
        raise _in_place(out, error) from error


def _in_place(out: Path, error: OSError) -> StagingError:
    left = "; --resume removes what is left over" if (out / STATE_FILE).exists() else ""
    return StagingError(f"{out}: is complete and in place, but the disk failed afterwards ({error.strerror}){left}")


def _remove_bookkeeping(directory: Path) -> None:
    """Remove locks, journals and what was replaced, the file that says that there are any last."""
    if (directory / REPLACED).is_dir() and (directory / STATE_FILE).exists():
        shutil.rmtree(directory / REPLACED)
    for entry in sorted(directory.iterdir(), key=lambda entry: entry.name == STATE_FILE):
        if journal.is_bookkeeping(entry.name):
            entry.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == STATE_FILE):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)
    path.rmdir()


def _abandon(staging: Staging) -> None:
    """Remove the staging directory, unless the disk fails or another part is being written: neither hides the error."""
    with suppress(OSError, StagingError), ExitStack() as held:
        with suppress(OSError):  # a disk that fails here too has no other parts that get on
            held.enter_context(_released(lock.take(staging.path / LOCK_FILE, create=False, patience=lock.PATIENCE)))
        _refuse_others(staging)
        staging.release()
        if os.name == "nt":  # Windows removes no open file
            held.close()
        _remove(staging.path)


def _clear(staging: Staging) -> None:
    """Empty the directory except for this process's locks; the state file, which marks it as upcycle's, goes last."""
    _refuse_others(staging)
    for entry in sorted(staging.path.iterdir(), key=lambda entry: entry.name == STATE_FILE):
        if entry.name not in (LOCK_FILE, staging.part.lock):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _refuse_others(staging: Staging) -> None:
    """Raise StagingError when another part is being written."""
    for entry in staging.path.glob("state-*.lock"):
        if entry.name != staging.part.lock:
            lock.take(entry, create=False).release()


def _holds_work(path: Path) -> bool:
    """Whether anything but bookkeeping is there."""
    return path.exists() and any(not journal.is_bookkeeping(entry.name) for entry in path.iterdir())


def _refuse_foreign(staging: Staging) -> None:
    path = staging.path
    if path.is_symlink() or (path.exists() and not path.is_dir()) or os.path.ismount(path):
        raise InputError(
            "is in the way and is no directory of its own", where=path, hint="move it away or choose another OUT"
        )
    links = sorted(entry.name for entry in path.iterdir() if entry.is_symlink()) if path.exists() else []
    if links:
        raise InputError("holds symbolic links, which upcycle never makes", where=path, found=ascii(links[0])[1:-1])
    if _holds_work(staging.path) and not (staging.path / STATE_FILE).exists() and not _is_replaced_output(staging.out):
        raise InputError(
            "is in the way and is no unfinished output",
            where=staging.path,
            hint="move it away or choose another OUT",
        )


def _is_replaced_output(out: Path) -> bool:
    """Whether a kill came between the exchange of two outputs and the end of the commit.

    Then the new one in OUT still has its state file, and what is left of the old one has none.
    """
    old = staging_path(out)
    return (out / STATE_FILE).is_file() and old.is_dir() and not (old / STATE_FILE).exists()


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the entries of `one` that `other` has not."""
    return ", ".join(f"{name} {value}" for name, value in one.items() if other.get(name) != value)
