"""Writes checkpoints of a training, each verified before it gets its name, and puts the last one's model into OUT.

`open_run` gives the directory OUT to one process, `Run.save` writes a checkpoint, `Run.newest` finds the one to go on
from, `Run.finish` puts the model at the top of OUT. Whatever stops them, the newest complete checkpoint is the old one
or the new one. `upcycle.train.saved.directory` says what lies in OUT.
"""

import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from upcycle.checkpoint import lock
from upcycle.checkpoint.lock import Lock
from upcycle.checkpoint.place import staging_path
from upcycle.checkpoint.writer import copy_range, sync_directory, sync_file
from upcycle.errors import StagingError
from upcycle.train.saved import directory
from upcycle.train.saved.directory import (
    LOCK_FILE,
    MODEL_MARKS,
    RECORD_FILE,
    RunRecord,
    checkpoint_path,
    checkpoint_paths,
)
from upcycle.train.saved.manifest import (
    MANIFEST_FILE,
    WEIGHTS_SUFFIX,
    Entry,
    find_fault,
    find_strangers,
    is_same,
    read_manifest,
    seal,
)

_DISK_ERRORS = (OSError, SafetensorError, RuntimeError, StagingError)
"""Errors that a full or failing disk raises: in Python, safetensors and torch, and when a file is read again."""

_log = logging.getLogger("upcycle")


@dataclass
class Run:
    """The directory OUT of a training, held by this process; made by `open_run`."""

    out: Path
    record: RunRecord

    def save(self, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
        """Make the checkpoint after `step` steps of what `write` puts into an empty directory, and return its path.

        It gets its name when every file is durable and was read again; only then older ones go, but for the newest
        `keep` complete ones, this one included. A checkpoint of the same step is replaced, unless it is the same.
        Raises StagingError when the disk fails; older checkpoints are then as they were.
        """
        path = checkpoint_path(self.out, step)
        staged = staging_path(path)
        with self._discarding(path):
            directory.discard_staged(path)  # what an earlier failure could not remove
            staged.mkdir()
            write(staged)
            seal(staged, step)
            if _fault(path, step) is not None or read_manifest(path) != read_manifest(staged):
                directory.withdraw(self.out, self.record)  # a model at the top would be that of another checkpoint
                directory.put(staged, path)
            directory.discard_staged(path)
        self._rotate(step, keep)
        return path

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, or None; damaged ones are passed over with a warning."""
        for step, path in checkpoint_paths(self.out).items():
            fault = _fault(path, step)
            if fault is None:
                return path
            _log.warning("%s is damaged and passed over: %s", path, fault)
        return None

    def finish(self, checkpoint: Path, names: Sequence[str]) -> None:
        """Put the files `names` of a complete checkpoint at the top of OUT, last those that make it a model.

        Weights are linked where the file system can; the rest is copied, so that who edits a config does not damage
        the checkpoint. May be repeated after a kill. Files that an earlier finish put there and that are not named
        now are removed. Raises StagingError when the disk fails; the checkpoint is as it was.
        """
        entries = read_manifest(checkpoint).files
        marks = set(names) & set(MODEL_MARKS)
        with self._discarding(checkpoint):
            if not all(_is_in_place(checkpoint / name, self.out / name, entries[name]) for name in names):
                self._note({*self.record.files, *names})
                directory.withdraw(self.out, self.record)
                self._put(checkpoint, entries, set(names) - marks)
                directory.unlink_all(self.out, set(self.record.files) - set(names))
            self._put(checkpoint, entries, marks)
            self._note(set(names))

    def _put(self, checkpoint: Path, entries: Mapping[str, Entry], names: Collection[str]) -> None:
        for name in sorted(names):
            _place(checkpoint / name, self.out / name, entries[name])
        for folder in {self.out, *((self.out / name).parent for name in self.record.files)}:
            if folder.is_dir():
                sync_directory(folder)

    def _note(self, files: set[str]) -> None:
        """RunRecord which files of a model are at the top, or are about to be."""
        if files != set(self.record.files):
            self.record = replace(self.record, files=tuple(sorted(files)))
            directory.write_record(self.out, self.record)

    def _rotate(self, step: int, keep: int) -> None:
        """Remove what is older than the newest `keep` complete checkpoints up to `step`; a failure can wait."""
        kept = 1
        for older, path in checkpoint_paths(self.out).items():
            if older >= step:
                continue
            if kept < keep:
                kept += _fault(path, older, hashes=False) is None
            elif path.is_symlink() or find_strangers(path):
                _log.warning("%s is kept: it holds what upcycle did not make", path)
            else:
                with _warned(path):
                    directory.remove(path)

    @contextmanager
    def _discarding(self, path: Path) -> Iterator[None]:
        """Remove the half-written checkpoint `path` when the body fails, and add to the error which one is kept."""
        try:
            yield
        except BaseException as error:
            with suppress(OSError):
                directory.discard_staged(path)
            kept = self._kept()
            if isinstance(error, _DISK_ERRORS):
                raise StagingError(f"{_reason(error, path)}; {kept}") from error
            error.add_note(kept)
            raise

    def _kept(self) -> str:
        for step, path in checkpoint_paths(self.out).items():
            if _fault(path, step, hashes=False) is None:
                return f"{path.name} is kept, and --resume continues from it"
        return "there is no checkpoint yet"


@contextmanager
def open_run(
    out: Path,
    fingerprint: Mapping[str, Any],
    *,
    model: Path,
    base: Path | None = None,
    resume: bool,
    overwrite: bool,
    data: Sequence[Path] = (),
    free: Collection[str] = (),
    beside: Collection[str] = ("metrics.jsonl",),
) -> Iterator[Run]:
    """Take `out` for the training that `fingerprint`, a JSON value, decides: the recipe and what it starts from.

    With `resume` a run that is there goes on, if its fingerprint is the same but for entries named in `free` (as
    `max_steps`, or `recipe.max_steps` for one in a group); with `overwrite` it is removed, if upcycle made all that
    is there: files and directories named in `beside` count as the run's. `resume` where there is nothing begins.
    Raises InputError when something is in the way or `out` overlaps with what is read, StagingError when another
    process holds `out` or the disk fails. A run that ends by an exception before it wrote anything leaves no trace.
    """
    wanted: dict[str, Any] = json.loads(json.dumps(fingerprint, allow_nan=False))
    directory.check_apart(out, [model, *([base] if base else [])], data)
    directory.check_out(out, resume=resume, overwrite=overwrite, beside=beside)
    with _held(out):
        try:
            with _as_staging(out):
                record = directory.check_out(out, resume=resume, overwrite=overwrite, beside=beside)
                run = Run(out, _begin(out, record, wanted, resume=resume, free=free))
            yield run
        except BaseException:
            _leave_no_trace(out, beside)
            raise


def _begin(
    out: Path, record: RunRecord | None, wanted: dict[str, Any], *, resume: bool, free: Collection[str]
) -> RunRecord:
    """Bring `out` to where training can begin or go on; `record` is that of the run that is there."""
    if record and resume:
        directory.check_same(out, record.fingerprint, wanted, free)
    if record:
        directory.sweep(out, record)
    if record and not resume:
        directory.clear(out, record)
        record = None
    begun = replace(record, fingerprint=wanted) if record else RunRecord(wanted)
    if begun != record:
        directory.write_record(out, begun)
        sync_directory(out.parent)
    return begun


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Make the directory and hold its lock; a directory that was made here and is empty again goes."""
    made = not out.exists()
    try:
        with _as_staging(out):
            out.mkdir(parents=True, exist_ok=True)
            held = lock.take(out / LOCK_FILE)
        try:
            yield
        finally:
            _release(out, held)
    finally:
        if made:
            with suppress(OSError):
                out.rmdir()


def _release(out: Path, held: Lock) -> None:
    """Let go; who waits for the lock finds its file gone and makes another (Windows removes no open file)."""
    if os.name == "nt":
        held.release()
    with suppress(OSError):
        (out / LOCK_FILE).unlink()
    held.release()


def _leave_no_trace(out: Path, beside: Collection[str]) -> None:
    """Remove the record of a run that has written nothing, and the empty files that it began."""
    own = {RECORD_FILE, staging_path(out / RECORD_FILE).name}
    with suppress(OSError):
        entries = [entry for entry in out.iterdir() if entry.name != LOCK_FILE]
        if all(entry.name in own or (entry.name in beside and not entry.stat().st_size) for entry in entries):
            for entry in entries:
                entry.unlink()


def _fault(path: Path, step: int, *, hashes: bool = True) -> str | None:
    """As `find_fault`; also when it is the checkpoint of another step."""
    fault = find_fault(path, hashes=hashes)
    if fault is None and read_manifest(path).step != step:
        return f"{MANIFEST_FILE}: it is of step {read_manifest(path).step}"
    return fault


def _is_in_place(source: Path, target: Path, entry: Entry) -> bool:
    return target.is_file() and (source.samefile(target) or is_same(target, entry))


def _place(source: Path, target: Path, entry: Entry) -> None:
    """Give `target` the content of `source` in one step."""
    if _is_in_place(source, target, entry):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = staging_path(target)
    staged.unlink(missing_ok=True)
    if not (target.suffix == WEIGHTS_SUFFIX and _link(source, staged)):
        with source.open("rb", buffering=0) as origin, staged.open("wb", buffering=0) as copy:
            copy_range(origin, 0, copy, 0, entry.size, lambda _: None)
            sync_file(copy.fileno())
        if not is_same(staged, entry):
            raise StagingError(f"{staged}: is not what was copied from {source}")
    staged.replace(target)


def _link(source: Path, target: Path) -> bool:
    """Make a hard link; return whether the file system could."""
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    return True


def _reason(error: BaseException, place: Path) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or place}: {error.strerror or error}"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if isinstance(error, StagingError) else f"{place}: {text}"


@contextmanager
def _as_staging(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StagingError(_reason(error, out)) from error


@contextmanager
def _warned(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _log.warning("%s could not be removed: %s", path, error.strerror)
