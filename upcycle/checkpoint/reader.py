"""Opens a checkpoint directory: reads and checks its config, headers and index, and refuses unsafe links and names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, Protocol

from upcycle.checkpoint.header import Header, TensorSpec, check_name, read_header, refuse_pointer
from upcycle.checkpoint.strict_json import read_object
from upcycle.errors import CheckpointError
from upcycle.message import listed, quoted

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth")
CONFIG_FILE = "config.json"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
MAX_SIDE_BYTES = 100_000_000
"""Largest file beside the weights, which are read whole; the largest tokenizers take a third of it."""
CHAT_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
GENERATION_FILE = "generation_config.json"
PROCESSOR_FILES = (
    "processor_config.json", "preprocessor_config.json", "image_processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip

_WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
_MAX_FILE_NAME = 255  # bytes, of every common file system


class Files(Protocol):
    """The files of a checkpoint, wherever they are: in a directory, or in a repository on the Hub."""

    @property
    def place(self) -> Path:
        """The directory, or what messages call the repository."""

    def names(self) -> list[str]:
        """Return the names of all files at the top."""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file; raise CheckpointError when it is not one."""

    def header(self, name: str) -> Header:
        """Return the header of a safetensors file; raise CheckpointError when it is not sound."""


@dataclass(frozen=True)
class Directory:
    """A directory on disk."""

    place: Path

    def names(self) -> list[str]:
        """Return the names of all files."""
        return sorted(path.name for path in self.place.iterdir())

    def has(self, name: str) -> bool:
        """Whether there is a file of that name, or a link to one."""
        return (self.place / name).exists()

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file, which must lie in the directory."""
        return read_object(inside(self.place, name))

    def header(self, name: str) -> Header:
        """Return the header of a file, which must lie in the directory."""
        return read_header(inside(self.place, name))


@dataclass(frozen=True)
class Checkpoint:
    """A dense or MoE checkpoint; tensors are known from the headers, no data has been read."""

    directory: Path  # where it is, or what messages call the repository it is in
    config: dict[str, Any]
    headers: Mapping[str, Header]  # by shard file name

    @cached_property
    def tensors(self) -> dict[str, TensorSpec]:
        """Every tensor by name."""
        return {name: spec for header in self.headers.values() for name, spec in header.tensors.items()}

    @cached_property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The tokenizer files that are there, chat template included, in a fixed order."""
        return present_files(self.directory, (*TOKENIZER_FILES, *CHAT_TEMPLATE_FILES))


def open_checkpoint(where: Path | Files) -> Checkpoint:
    """Read config and headers; raise CheckpointError when anything is missing or malformed."""
    if isinstance(where, Path) and not where.is_dir():
        raise CheckpointError("no such model directory", where=where)
    files = Directory(where) if isinstance(where, Path) else where
    return Checkpoint(files.place, files.json(CONFIG_FILE), _read_shards(files))


def present_files(directory: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """Return those of `names` that exist in `directory`, each checked to lie inside it (or in the Hub cache)."""
    paths = tuple(inside(directory, name) for name in names if os.path.lexists(directory / name))
    for path in paths:
        if path.suffix not in PICKLED_SUFFIXES and path.stat().st_size > MAX_SIDE_BYTES:
            size = path.stat().st_size
            raise CheckpointError("file too large", where=path, found=f"{size} bytes", expected="at most 100 MB")
    return paths


def _read_shards(files: Files) -> dict[str, Header]:
    names = files.names()  # with links that lead nowhere, which shall be called that
    if INDEX_FILE in names:
        return _read_indexed(files)
    if SINGLE_FILE in names:
        return {SINGLE_FILE: files.header(SINGLE_FILE)}
    if any(PurePath(name).suffix in PICKLED_SUFFIXES for name in names):
        raise CheckpointError(
            "holds pickled weights, which can run code when they are read",
            where=files.place,
            expected=f"{SINGLE_FILE} or {INDEX_FILE}",
            hint="--allow-pickle reads them as tensors and nothing else",
        )
    raise CheckpointError("holds no weights", where=files.place, expected=f"{SINGLE_FILE} or {INDEX_FILE}")


def _read_indexed(files: Files) -> dict[str, Header]:
    path = files.place / INDEX_FILE
    weight_map = read_weight_map(files, INDEX_FILE, ".safetensors")
    names = sorted(set(weight_map.values()))
    if files.has(SINGLE_FILE) and names != [SINGLE_FILE]:
        raise CheckpointError(
            f"both {SINGLE_FILE} and {INDEX_FILE} are there, and readers differ in which they load",
            where=files.place,
            hint="remove the one that is stale",
        )
    check_present(files, names)
    headers: dict[str, Header] = {}
    placed = _by_shard(weight_map)
    for name in names:  # checked one by one: no more is held than the index says there is
        headers[name] = files.header(name)
        _check_index(name, headers[name], placed[name], weight_map, path)
    return headers


def _by_shard(weight_map: Mapping[str, str]) -> dict[str, set[str]]:
    placed: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        placed.setdefault(name, set()).add(tensor)
    return placed


def check_present(files: Files, names: list[str]) -> None:
    """Raise CheckpointError listing those of the shards `names` that are missing."""
    missing = [name for name in names if not files.has(name)]
    if missing:
        raise CheckpointError(
            "shards are missing", where=files.place, found=f"{len(names) - len(missing)} of {len(names)}",
            expected=listed(missing), hint="the download is incomplete",
        )  # fmt: skip


def read_weight_map(files: Files, index: str, suffix: str) -> dict[str, str]:
    """Return tensor -> file of an index file; raise CheckpointError unless all are plain names ending in `suffix`."""
    path = files.place / index
    weight_map = files.json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no weight_map", where=path)
    for tensor, shard in weight_map.items():
        check_name(tensor, path)
        if not isinstance(shard, str) or not is_plain_name(shard) or not shard.endswith(suffix):
            raise CheckpointError(
                f"unsafe file name for tensor {tensor!r}",
                where=path,
                found=quoted(shard, 120),
                expected=f"a {suffix} file name without directories",
            )
    return weight_map


def is_plain_name(name: str) -> bool:
    """Whether `name` is one path component on every platform (no drive, root, `..` or separator, and not too long)."""
    fits = name.isprintable() and len(name.encode()) <= _MAX_FILE_NAME
    if not fits or PureWindowsPath(name).name != name or name in {"", ".", ".."}:
        return False
    stem = name.split(".")[0].rstrip().upper()
    return not set(name) & set('<>:"|?*') and name[-1] not in " ." and stem not in _WINDOWS_DEVICES


def _check_index(shard: str, header: Header, indexed: set[str], weight_map: Mapping[str, str], path: Path) -> None:
    """A shard holds what the index places there, and so no two shards hold the same."""
    absent = sorted(indexed - header.tensors.keys())
    if absent:
        raise CheckpointError(
            "the index names tensors that the shard lacks", where=path, found=shard, expected=listed(absent)
        )
    extra = sorted(header.tensors.keys() - indexed)
    twice = next((name for name in extra if name in weight_map), None)
    if twice is not None:
        both = " and ".join(sorted((shard, weight_map[twice])))
        raise CheckpointError(f"tensor {twice!r} is in two shards", where=path.parent, found=both)
    if extra:
        raise CheckpointError(
            "a shard holds tensors that the index does not place there", where=path, found=f"{listed(extra)} in {shard}"
        )


def inside(directory: Path, name: str) -> Path:
    """Return `directory / name`; raise CheckpointError for what git LFS left in its place, or no regular file.

    A symlink may only lead inside the directory or into the same Hub cache entry.
    """
    path = directory / name
    if not os.path.lexists(path):
        return path
    if not path.is_file():
        raise CheckpointError("is not a regular file, or a link to none", where=path)
    if path.is_symlink():
        _check_link(path, directory)
    try:
        with path.open("rb") as file:
            refuse_pointer(file.read(64), path, "the file itself")
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=path) from None
    return path


def _check_link(path: Path, directory: Path) -> None:
    real, root = path.resolve(), directory.resolve()
    # The Hub cache: models--org--name/snapshots/REV/file -> ../../blobs/HASH, and since huggingface_hub 2.4 that may
    # be a link itself, to blobs/59/XETHASH of the whole cache.
    repository = root.parent.parent
    shared = (repository / "blobs", repository.parent / "blobs") if root.parent.name == "snapshots" else ()
    roots = (root, *shared)
    if not any(real.is_relative_to(allowed) for allowed in roots):
        found = real if str(real).isprintable() and len(str(real)) < 400 else quoted(str(real), 400)
        raise CheckpointError(
            "is a symbolic link out of the checkpoint", where=path, found=found, hint="put the file itself in its place"
        )


def hub_blob(path: Path) -> str | None:
    """Return the name of the blob, a hash, that a file in the Hub's cache is a link to; None for other files."""
    if not path.is_symlink():
        return None
    blob = path.readlink()  # which may itself be a link, to a store of the whole cache
    return blob.name if blob.parent.name == "blobs" and path.parent.parent.name == "snapshots" else None
