"""The manifest of a checkpoint: size and SHA-256 of each file, by which it is known to be complete and undamaged.

    checkpoint.json    {"step": 100, "files": {"model.safetensors": {"size": 6480, "sha256": "..."}, ...}}

A checkpoint is complete when it has a manifest and every file is what the manifest says. Files that it does not name
are someone else's, and change nothing.
"""

import json
import os
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.header import read_header
from upcycle.checkpoint.strict_json import read_object
from upcycle.checkpoint.writer import sync_directory, sync_file, write_durably
from upcycle.errors import CheckpointError, StagingError

MANIFEST_FILE = "checkpoint.json"
WEIGHTS_SUFFIX = ".safetensors"

_MAX_WORKERS = 8  # more threads than this do not make a disk faster


@dataclass(frozen=True, slots=True)
class Entry:
    """Size and hash that a file must have."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A step of training and the files that hold its state, by their names relative to the checkpoint."""

    step: int
    files: dict[str, Entry]


def seal(directory: Path, step: int) -> None:
    """Make all files in `directory` durable, write its manifest, and compare what the disk gives back with it.

    The files are hashed from memory first, and then read again after the kernel was asked to forget them. They get the
    permissions of `directory`: safetensors makes files that only their owner can read. Raises OSError when the disk
    fails, StagingError when it gives back something else, or a file is not sound.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    mode = directory.stat().st_mode & 0o666
    with _pool() as pool:
        hashes = pool.map(_entry, paths)
        for path in paths:  # meanwhile
            path.chmod(mode)
            _sync(path)
        files = {
            path.relative_to(directory).as_posix(): asdict(entry) for path, entry in zip(paths, hashes, strict=True)
        }
    for folder in {path.parent for path in paths} - {directory}:
        sync_directory(folder)
    write_durably(directory / MANIFEST_FILE, json.dumps({"step": step, "files": files}, indent=1).encode() + b"\n")
    sync_directory(directory)
    for path in paths:
        _forget(path)
    fault = find_fault(directory)
    if fault:
        raise StagingError(f"{directory}: is not what was written when it is read again ({fault})")


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of a checkpoint; raise CheckpointError when there is none or it is damaged."""
    path = directory / MANIFEST_FILE
    value = read_object(path)
    step, files = value.get("step"), value.get("files")
    if type(step) is not int or not isinstance(files, dict) or not all(map(_is_entry, files.values())):
        raise CheckpointError("is no manifest of a checkpoint", where=path)
    return Manifest(step, {name: Entry(entry["size"], entry["sha256"]) for name, entry in files.items()})


def find_fault(directory: Path, *, hashes: bool = True) -> str | None:
    """Return what is wrong with a checkpoint, naming the file, or None when it is complete.

    Without `hashes` only names and sizes are compared.
    """
    try:
        manifest = read_manifest(directory)
    except CheckpointError as error:
        return f"{MANIFEST_FILE}: {error.what}"
    faults = [_size_fault(directory / name, name, entry) for name, entry in manifest.files.items()]
    if hashes and not any(faults):
        by_size = sorted(manifest.files.items(), key=lambda item: -item[1].size)
        with _pool() as pool:
            faults = list(pool.map(lambda item: _content_fault(directory / item[0], *item), by_size))
    return next(filter(None, faults), None)


def find_strangers(directory: Path) -> list[str]:
    """Return the files in a checkpoint that its manifest does not name; none where there is no manifest to tell."""
    try:
        named = with_parents({MANIFEST_FILE, *read_manifest(directory).files})
    except CheckpointError:
        return []
    return [name for path in leaves(directory) if (name := path.relative_to(directory).as_posix()) not in named]


def leaves(path: Path) -> Iterator[Path]:
    """Yield the files, links and empty directories at and below `path`."""
    inside = sorted(path.iterdir()) if path.is_dir() and not path.is_symlink() else []
    for entry in inside:
        yield from leaves(entry)
    if not inside:
        yield path


def with_parents(names: Collection[str]) -> set[str]:
    """Return the relative paths `names` and those of all directories above them."""
    return {*names, *(parent.as_posix() for name in names for parent in PurePosixPath(name).parents)}


def is_same(path: Path, entry: Entry) -> bool:
    """Whether the file `path` has the size and the bytes of `entry`."""
    return path.is_file() and path.stat().st_size == entry.size and _entry(path) == entry


def _size_fault(path: Path, name: str, entry: Entry) -> str | None:
    if not path.is_file():
        return f"{name}: is missing"
    size = path.stat().st_size
    return None if size == entry.size else f"{name}: found {size:,} bytes, expected {entry.size:,}"


def _content_fault(path: Path, name: str, entry: Entry) -> str | None:
    try:
        if _entry(path) != entry:
            return f"{name}: its SHA-256 is not the manifest's"
        if path.suffix == WEIGHTS_SUFFIX:
            read_header(path)
    except CheckpointError as error:
        return f"{name}: {error.what}"
    except OSError as error:
        return f"{name}: cannot be read ({error.strerror})"
    return None


def _entry(path: Path) -> Entry:
    with path.open("rb", buffering=0) as file:
        return Entry(os.fstat(file.fileno()).st_size, sha256_of(path))


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("size")) is int and isinstance(value.get("sha256"), str)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        sync_file(file.fileno())


def _forget(path: Path) -> None:
    """Ask the kernel to drop its copy of a file that is on the disk, so that the disk is what is read next (Linux)."""
    if sys.platform == "linux":
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1))
