"""The staging directory: an output is built beside its place and takes it in one rename.

`OUT.partial/` holds finished and unfinished shards and `state.jsonl`: first a line with the fingerprint of the
plan and its sources, then a line for every shard that is complete and on disk. A shard without a line is written
again, so a kill costs at most the shards in progress. The state file goes last, after the rename: a staging directory
without one is an output that was replaced. A lock on the directory keeps a second writer out.
"""

import ctypes
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upcycle.checkpoint.strict_json import read_object
from upcycle.checkpoint.writer import sync_directory, write_durably
from upcycle.errors import InputError, StagingError

STATE_FILE = "state.jsonl"
RECEIPT_FILE = "upcycle.json"
_SUFFIX = ".partial"
_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h


@dataclass
class Staging:
    """An open staging directory; made by `open_staging`."""

    out: Path
    path: Path
    overwrite: bool = False
    done: dict[str, dict[str, str]] = field(default_factory=dict)  # finished shard -> sha256 of its computed tensors

    def record(self, shard: str, hashes: Mapping[str, str]) -> None:
        """Note durably that `shard`, whose bytes are already synced, is complete."""
        line = json.dumps({"shard": shard, "sha256": dict(hashes)}) + "\n"
        with (self.path / STATE_FILE).open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.done[shard] = dict(hashes)

    def commit(self) -> None:
        """Give the finished directory its name; whatever `OUT` held before is gone only afterwards."""
        try:
            check_out(self.out, (), overwrite=self.overwrite)  # again: hours may have passed
        except InputError as error:
            raise StagingError(f"{error}; what is finished is kept in {self.path}") from None
        sync_directory(self.path)
        if self.out.exists() and any(self.out.iterdir()):
            (self.out / STATE_FILE).unlink(missing_ok=True)  # of an earlier commit that was cut off
            _exchange(self.path, self.out)
        else:
            self.path.replace(self.out) if os.name != "nt" else _replace_empty(self.path, self.out)
        sync_directory(self.out.parent)
        _clean_up(self.out)


def finish_commit(out: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Whether `out` is complete, made by the same work and cut off after the rename; if so, remove what that left."""
    if not (out / STATE_FILE).is_file() or _read_state(out)[:1] != [fingerprint]:
        return False
    _clean_up(out)
    return True


def _clean_up(out: Path) -> None:
    """After the rename: the output that was replaced goes, then the state file, which tells that it was replaced."""
    if _is_replaced_output(out):
        _remove(staging_path(out))
        sync_directory(out.parent)
    (out / STATE_FILE).unlink(missing_ok=True)
    sync_directory(out)


def staging_path(out: Path) -> Path:
    """Where the unfinished output of `out` lives."""
    return out.with_name(out.name + _SUFFIX)


def check_out(out: Path, sources: tuple[Path, ...], *, overwrite: bool) -> None:
    """Raise InputError unless `out` is free, or may be replaced, and does not touch a source directory."""
    if out.name in ("", "..") or out.name.endswith(_SUFFIX):
        raise InputError(
            "OUT cannot have this name", where=out, expected=f"a name of its own, without {_SUFFIX} at its end"
        )
    for source in sources:
        _check_apart(out, source.resolve())
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError("OUT is not a directory", where=out, hint="choose another OUT")
    if out.is_mount():
        raise InputError(
            "OUT is a mount point, which no rename can put in place", where=out, hint="choose a directory inside it"
        )
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise InputError("OUT is not empty", where=out, hint="--overwrite replaces it when the new one is complete")
    foreign = _not_made_here(out)
    if foreign:
        raise InputError(
            "OUT holds what upcycle did not make, so --overwrite leaves it alone",
            where=out,
            found=foreign,
            hint="remove it yourself or choose another OUT",
        )


def _not_made_here(out: Path) -> str | None:
    """Return what in `out` is not of a conversion, or None: the receipt names the files that it made."""
    if not (out / RECEIPT_FILE).is_file():
        return f"no {RECEIPT_FILE}"
    files = read_object(out / RECEIPT_FILE).get("files")
    made = {RECEIPT_FILE, STATE_FILE, *(files if isinstance(files, dict) else ())}
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in made or not entry.is_file())
    return ", ".join(foreign[:4]) or None


def _check_apart(out: Path, source: Path) -> None:
    for place in (out.resolve(), staging_path(out).resolve()):
        if place.is_relative_to(source) or source.is_relative_to(place):
            raise InputError("OUT and MODEL overlap", where=out, hint="write to a directory outside the model")


@contextmanager
def open_staging(out: Path, fingerprint: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Iterator[Staging]:
    """Open (and lock) the staging directory of `out` for work described by `fingerprint`, a JSON value.

    With `resume`, finished shards of the same fingerprint are kept; with `overwrite`, an unfinished one is discarded.
    A refusal inside removes it, since going on would meet it again. Raises InputError when an unfinished conversion
    is in the way, StagingError when another process is writing.
    """
    staging = Staging(out, staging_path(out), overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    found = staging.path.exists()
    staging.path.mkdir(exist_ok=True)
    with _locked(staging.path):
        replaced = _is_replaced_output(out)
        if not replaced:
            _refuse_foreign(staging.path)
        if replaced or (overwrite and not resume):
            _clear(staging.path)
        elif found and not resume:
            raise InputError(
                "an unfinished conversion is there",
                where=staging.path,
                hint="--resume continues it, --overwrite starts again",
            )
        lines = _read_state(staging.path)
        if lines and lines[0] != fingerprint:
            raise InputError(
                "the unfinished conversion there has another plan or another source",
                where=staging.path,
                found=_difference(lines[0], fingerprint) or None,
                expected=_difference(fingerprint, lines[0]) or None,
                hint="--overwrite without --resume starts again",
            )
        if not lines:
            write_durably(staging.path / STATE_FILE, (json.dumps(fingerprint) + "\n").encode())
        staging.done = {line["shard"]: line["sha256"] for line in lines[1:]}
        try:
            yield staging
        except BaseException as error:
            if isinstance(error, InputError) or [entry.name for entry in staging.path.glob("*")] == [STATE_FILE]:
                _remove(staging.path)
            raise


def _read_state(path: Path) -> list[dict[str, Any]]:
    """The complete lines of the state file; a line cut short by a kill does not count and is cut off."""
    try:
        data = (path / STATE_FILE).read_bytes()
    except FileNotFoundError:
        return []
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        write_durably(path / STATE_FILE, whole)
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        lines = [None]
    if not all(isinstance(line, dict) for line in lines) or not all({"shard", "sha256"} <= set(x) for x in lines[1:]):
        hint = "--overwrite without --resume starts again"
        raise InputError("is damaged", where=path / STATE_FILE, hint=hint)
    return lines


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock on the directory; a second writer gets a StagingError. Not on Windows."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StagingError(f"{path}: another upcycle process is writing here") from None
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    _clear(path)
    path.rmdir()


def _clear(path: Path) -> None:
    """Empty the directory; the file that shows it to be upcycle's goes last, for a kill in between."""
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == STATE_FILE):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _refuse_foreign(path: Path) -> None:
    names = {entry.name for entry in path.iterdir()}
    if names and STATE_FILE not in names:
        raise InputError(
            "is in the way and is no unfinished conversion", where=path, hint="move it away or choose another OUT"
        )


def _is_replaced_output(out: Path) -> bool:
    """Whether a kill came between the exchange of two outputs and the end of the commit.

    Then the new one in OUT still has its state file, and what is left of the old one has none.
    """
    old = staging_path(out)
    return (out / STATE_FILE).is_file() and old.is_dir() and not (old / STATE_FILE).exists()


def _exchange(staged: Path, out: Path) -> None:
    """Swap two directories atomically (Linux), or by two renames that are undone if the second one fails."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if renameat2 and renameat2(_AT_FDCWD, os.fsencode(staged), _AT_FDCWD, os.fsencode(out), _RENAME_EXCHANGE) == 0:
        return
    aside = out.with_name(out.name + ".replaced")
    out.rename(aside)
    try:
        staged.rename(out)
    except OSError:
        aside.rename(out)
        raise
    aside.rename(staged)


def _replace_empty(staged: Path, out: Path) -> None:
    if out.exists():
        out.rmdir()
    staged.rename(out)


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the entries of `one` that `other` has not."""
    return ", ".join(f"{name} {value}" for name, value in one.items() if other.get(name) != value)
