"""Checks that OUT may be written or replaced, and moves a finished output there in one step."""

import ctypes
import os
from pathlib import Path

from upcycle.checkpoint.journal import STATE_FILE, is_bookkeeping
from upcycle.checkpoint.strict_json import read_object
from upcycle.errors import CheckpointError, InputError, StagingError

RECEIPT_FILE = "upcycle.json"
CARD_FILE = "README.md"
DEQUANTISED_FILE = "dequantised.json"
METRICS_FILE = "metrics.jsonl"
VERIFICATION_FILE = "verify.json"
VERIFICATION = "verification"
"""Value of `made` in verify.json."""
REPLACED = "state.replaced"
"""Name of the replaced output inside the new one, for a moment, where two directories cannot be exchanged."""

_SUFFIX = ".partial"
_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h


def staging_path(out: Path) -> Path:
    """Return the directory in which the output for `out` is built."""
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
    if os.path.ismount(out):  # Path.is_mount: not on Windows in 3.11
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


def is_verification(path: Path) -> bool:
    """Whether a file was written by `upcycle verify --record`."""
    try:
        return path.is_file() and not path.is_symlink() and read_object(path).get("made") == VERIFICATION
    except CheckpointError:
        return False


def _not_made_here(out: Path) -> str | None:
    """Return the first names in `out` that its receipt does not list, or None when all are upcycle's."""
    if not (out / RECEIPT_FILE).is_file():
        return f"no {RECEIPT_FILE}"
    files = read_object(out / RECEIPT_FILE).get("files")
    made = {RECEIPT_FILE, *(files if isinstance(files, dict) else ()), staging_path(out / VERIFICATION_FILE).name}
    if is_verification(out / VERIFICATION_FILE):
        made.add(VERIFICATION_FILE)
    strange = (entry for entry in out.iterdir() if entry.name not in made and not is_bookkeeping(entry.name))
    foreign = {entry.name for entry in strange} | {e.name for e in out.iterdir() if not e.is_file()}
    if (out / STATE_FILE).is_file():  # a commit that was cut off
        foreign.discard(REPLACED)
    return ", ".join(sorted(foreign)[:4]) or None


def _check_apart(out: Path, source: Path) -> None:
    for place in (out.resolve(), staging_path(out).resolve()):
        if place.is_relative_to(source) or source.is_relative_to(place):
            raise InputError("OUT and MODEL overlap", where=out, hint="write to a directory outside the model")


def exchange(staged: Path, out: Path) -> None:
    """Put `staged` in the place of `out`: by swapping the two atomically (Linux), or by two renames.

    Those move `out` into `staged` first, which then takes its name, so that no third name is ever there. They are
    undone if the second one fails, and `restore` undoes them if a kill comes in between.
    """
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if renameat2 and renameat2(_AT_FDCWD, os.fsencode(staged), _AT_FDCWD, os.fsencode(out), _RENAME_EXCHANGE) == 0:
        return
    out.rename(staged / REPLACED)
    try:
        staged.rename(out)
    except OSError as error:
        try:
            restore(out)
        except OSError:
            raise StagingError(
                f"{out}: could be neither replaced nor put back ({error.strerror}); "
                f"it is kept in {staged / REPLACED}, and the next output to {out} puts it back"
            ) from error
        raise


def restore(out: Path) -> None:
    """Put back what `exchange` moved aside and did not replace."""
    aside = staging_path(out) / REPLACED
    if aside.is_dir() and not os.path.lexists(out):
        aside.rename(out)


def put(staged: Path, out: Path) -> None:
    """Give a directory its name; `out` may be an empty directory."""
    if os.name == "nt" and out.exists():
        out.rmdir()
    staged.replace(out)
