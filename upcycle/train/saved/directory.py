"""The directory OUT of a training: whether it may be used or replaced, and which files in it upcycle made.

    training.json               what decides the numbers, and which of the files beside it are the finished model
    run.lock                    held by the process that trains
    checkpoint-000100/          complete: see `upcycle.train.saved.manifest`
    checkpoint-000200.partial/  being written, or being removed; swept when a run opens
    config.json ...             the model, once the training is over

A file that ends in `.partial` is about to take the name before that.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, TypeGuard

from upcycle.checkpoint import place
from upcycle.checkpoint.place import REPLACED, staging_path
from upcycle.checkpoint.strict_json import read_object
from upcycle.checkpoint.writer import sync_directory, write_durably
from upcycle.errors import CheckpointError, InputError
from upcycle.train.saved.manifest import find_strangers, leaves, with_parents

RECORD_FILE = "training.json"
LOCK_FILE = "run.lock"
MODEL_MARKS = ("adapter_config.json", "config.json")
"""Files that make a directory look like a model: written last, removed first."""

_FORMAT = 1
_CHECKPOINT = re.compile(r"checkpoint-(\d{6,})")
_PARTIAL = re.compile(r"checkpoint-\d{6,}\.partial")
_SHOWN = 4  # differences in a message


@dataclass(frozen=True, slots=True)
class RunRecord:
    """`training.json`: the identity of a run, and the files at the top of OUT that are its model."""

    fingerprint: dict[str, Any]  # a JSON value
    files: tuple[str, ...] = ()  # of the model at the top of OUT


def checkpoint_path(out: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` steps."""
    return out / f"checkpoint-{step:06d}"


def checkpoint_paths(out: Path) -> dict[int, Path]:
    """Return the directories in `out` that are named as checkpoints, by their steps, the newest first."""
    found = {int(match[1]): path for path in out.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))}
    return {step: found[step] for step in sorted(found, reverse=True) if found[step].is_dir()}


def read_record(out: Path) -> RunRecord | None:
    """Return the record of the run in `out`, or None where there is none; CheckpointError when it is damaged."""
    path = out / RECORD_FILE
    if not path.is_file():
        return None
    value = read_object(path)
    fingerprint, files = value.get("fingerprint"), value.get("files")
    if value.get("format") != _FORMAT or not isinstance(fingerprint, dict) or not _are_names(files):
        raise CheckpointError("is no record of a training run that this version knows", where=path)
    return RunRecord(fingerprint, tuple(files))


def write_record(out: Path, record: RunRecord) -> None:
    """Replace the record of the run in `out` durably, in one step."""
    value = {"format": _FORMAT, "fingerprint": record.fingerprint, "files": record.files}
    staged = staging_path(out / RECORD_FILE)
    write_durably(staged, json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")
    staged.replace(out / RECORD_FILE)
    sync_directory(out)


def check_apart(out: Path, models: Sequence[Path], data: Sequence[Path]) -> None:
    """Raise InputError when OUT lies in a directory that the training reads, or holds one."""
    own = out.resolve()
    for source, name in [*((model, "MODEL") for model in models), *((path, "the data") for path in data)]:
        if own.is_relative_to(source.resolve()) or source.resolve().is_relative_to(own):
            raise InputError(
                f"OUT and {name} overlap", where=out, found=str(source), hint="choose an OUT that holds neither"
            )


def check_out(out: Path, *, resume: bool, overwrite: bool, beside: Collection[str]) -> RunRecord | None:
    """Return the record of the run in `out` that may go on or be replaced, None where `out` is free; else InputError.

    `beside` names files and directories that a run writes into `out` besides what this module knows.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise InputError("OUT is not a directory", where=out, hint="choose another OUT")
    record = read_record(out)
    if record is None:
        found = sorted({entry.name for entry in out.iterdir()} - _BEGINNINGS) if out.exists() else []
        if found:
            raise InputError(
                "OUT is not empty and holds no training run", where=out, found=found[0], hint="choose another OUT"
            )
    elif not resume:
        _check_replaceable(out, record, beside, overwrite=overwrite)
    return record


def check_same(out: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any], free: Collection[str]) -> None:
    """Raise InputError naming what differs, unless the run begun in `out` is the one that is wanted.

    `free` names entries, or groups of them, that may change: `max_steps`, or `recipe.max_steps` for one in a group.
    """
    old, new = dict(_flat(begun)), dict(_flat(wanted))
    names = [name for name in {**new, **old} if old.get(name, ...) != new.get(name, ...)]
    names = [name for name in names if not any(name == key or name.startswith(f"{key}.") for key in free)]
    if names:
        raise InputError(
            "the training run there is another one",
            where=out,
            found=_words(old, names),
            expected=_words(new, names),
            hint="--resume takes the options that the run began with; to go on with others, train one of its "
            "checkpoints into a new OUT",
        )


def clear(out: Path, record: RunRecord) -> None:
    """Remove a run that `check_out` found replaceable: first what makes it look like a model, last what tells of it."""
    withdraw(out, record)
    for entry in sorted(out.iterdir()):
        if entry.name not in (RECORD_FILE, LOCK_FILE):
            remove(entry)
    (out / RECORD_FILE).unlink()
    sync_directory(out)


def withdraw(out: Path, record: RunRecord) -> None:
    """Remove the MODEL_MARKS from the top of `out`, durably, so that it no longer looks like a model."""
    marks = [out / name for name in MODEL_MARKS if name in record.files and (out / name).exists()]
    for mark in marks:
        mark.unlink()
    if marks:
        sync_directory(out)


def sweep(out: Path, record: RunRecord) -> None:
    """Remove checkpoints that a killed run left half written or half removed."""
    for entry in sorted(out.iterdir()):
        if _is_partial(entry):
            discard_staged(entry.with_suffix(""))
        elif _CHECKPOINT.fullmatch(entry.name) and (entry / REPLACED).is_dir():
            shutil.rmtree(entry / REPLACED)
    staged = {f"{name}.partial" for name in (RECORD_FILE, *record.files)}
    for path in list(leaves(out)):
        if path.relative_to(out).as_posix() in staged:
            path.unlink()


def remove(path: Path) -> None:
    """Remove a file or a directory; one that is called a checkpoint stops being called so at once."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if _CHECKPOINT.fullmatch(path.name):
        partial = staging_path(path)
        if partial.exists():
            remove(partial)
        path = path.replace(partial)
    shutil.rmtree(path)


def unlink_all(out: Path, names: Collection[str]) -> None:
    """Remove files below `out`, and the directories that are empty then."""
    for name in names:
        (out / name).unlink(missing_ok=True)
    for parent in sorted(with_parents(names) - {".", *names}, reverse=True):
        if (out / parent).is_dir() and not any((out / parent).iterdir()):
            (out / parent).rmdir()


def put(staged: Path, path: Path) -> None:
    """Give the directory `staged` the name of a checkpoint, durably; what has the name now goes to the other one."""
    if path.is_dir():
        place.exchange(staged, path)
    else:
        place.put(staged, path)
    sync_directory(path.parent)
    if (path / REPLACED).is_dir():  # where two directories cannot be exchanged
        shutil.rmtree(path / REPLACED)


def discard_staged(path: Path) -> None:
    """Remove the staging directory of the checkpoint `path`; first put back a checkpoint that a kill left in there."""
    place.restore(path)
    if staging_path(path).is_dir():
        remove(staging_path(path))


_BEGINNINGS = {LOCK_FILE, staging_path(Path(RECORD_FILE)).name}  # left by a kill before a run had begun


def _check_replaceable(out: Path, record: RunRecord, beside: Collection[str], *, overwrite: bool) -> None:
    if not overwrite:
        raise InputError("a training run is there", where=out, hint="--resume continues it, --overwrite starts again")
    foreign = list(_foreign(out, record, beside))
    if foreign:
        raise InputError(
            "OUT holds what upcycle did not make, so --overwrite leaves it alone",
            where=out,
            found=", ".join(foreign[:_SHOWN]),
            hint="remove it yourself or choose another OUT",
        )


def _foreign(out: Path, record: RunRecord, beside: Collection[str]) -> Iterator[str]:
    """Yield the files that no training run has made, relative to `out`."""
    made = {RECORD_FILE, *record.files, *beside}
    made = with_parents(made | {f"{name}.partial" for name in made} | {LOCK_FILE})
    for entry in sorted(out.iterdir()):
        if _CHECKPOINT.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            strangers = (name for name in find_strangers(entry) if name.split("/")[0] != REPLACED)
            yield from (f"{entry.name}/{name}" for name in strangers)
        elif not _is_partial(entry) and (entry.name not in beside or entry.is_symlink()):
            names = (leaf.relative_to(out).as_posix() for leaf in leaves(entry))
            yield from (name for name in names if name not in made)


def _are_names(value: Any) -> TypeGuard[list[str]]:
    """Whether `value` lists files by paths that stay in the directory that they are relative to, on any platform."""
    return isinstance(value, list) and all(
        isinstance(name, str) and not PureWindowsPath(name).anchor and ".." not in PureWindowsPath(name).parts
        for name in value
    )


def _is_partial(path: Path) -> bool:
    return bool(_PARTIAL.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat(item, f"{before}{name}.")
        else:
            yield before + name, item


def _words(values: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the first few of `names` with their values, for a message."""
    said = (f"{name} {json.dumps(values[name])[:80]}" if name in values else f"no {name}" for name in names[:_SHOWN])
    return ", ".join(said)
