"""A checkpoint directory: its config, its tensors and its side files, checked before anything is used."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

from upcycle.checkpoint.header import Header, TensorSpec, check_name, read_header
from upcycle.checkpoint.strict_json import read_object
from upcycle.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
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
CHAT_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A dense or MoE checkpoint on disk; tensors are known from the headers, no data has been read."""

    directory: Path
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


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read config and headers of `directory`; raise CheckpointError when anything is missing or malformed."""
    if not directory.is_dir():
        raise CheckpointError("no such model directory", where=directory)
    config = read_object(_inside(directory, CONFIG_FILE))
    return Checkpoint(directory, config, _read_shards(directory))


def present_files(directory: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """Return those of `names` that exist in `directory`, each checked to lie inside it (or in the Hub cache)."""
    return tuple(_inside(directory, name) for name in names if os.path.lexists(directory / name))


def _read_shards(directory: Path) -> dict[str, Header]:
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if index.exists():
        return _read_indexed(directory, single.exists())
    if single.exists():
        return {SINGLE_FILE: read_header(_inside(directory, SINGLE_FILE))}
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise CheckpointError(
            "holds pickled weights, which can run code when they are read",
            where=directory,
            expected=f"{SINGLE_FILE} or {INDEX_FILE}",
            hint="save the model again with safe_serialization=True",
        )
    raise CheckpointError("holds no weights", where=directory, expected=f"{SINGLE_FILE} or {INDEX_FILE}")


def _read_indexed(directory: Path, single_exists: bool) -> dict[str, Header]:
    path = directory / INDEX_FILE
    weight_map = read_object(_inside(directory, INDEX_FILE)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no weight_map", where=path)
    names = _shard_names(weight_map, path)
    if single_exists and names != [SINGLE_FILE]:
        raise CheckpointError(
            f"both {SINGLE_FILE} and {INDEX_FILE} are there, and readers differ in which they load",
            where=directory,
            hint="remove the one that is stale",
        )
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise CheckpointError(
            "shards are missing", where=directory, found=f"{len(names) - len(missing)} of {len(names)}",
            expected=", ".join(missing), hint="the download is incomplete",
        )  # fmt: skip
    headers = {name: read_header(_inside(directory, name)) for name in names}
    _refuse_duplicates(headers)
    _check_index(weight_map, headers, path)
    return headers


def _shard_names(weight_map: Mapping[str, Any], path: Path) -> list[str]:
    for tensor, shard in weight_map.items():
        check_name(tensor, path)
        if not isinstance(shard, str) or not is_plain_name(shard) or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"unsafe file name for tensor {tensor!r}",
                where=path,
                found=ascii(shard)[:120],
                expected="a .safetensors file name without directories",
            )
    return sorted(set(weight_map.values()))


def is_plain_name(name: str) -> bool:
    """Whether `name` is one path component on every platform (no drive, root, `..` or separator)."""
    return name.isprintable() and PureWindowsPath(name).name == name and name not in {"", ".", ".."}


def _check_index(weight_map: Mapping[str, str], headers: Mapping[str, Header], path: Path) -> None:
    for shard, header in headers.items():
        indexed = {tensor for tensor, name in weight_map.items() if name == shard}
        absent = sorted(indexed - header.tensors.keys())
        if absent:
            raise CheckpointError(
                "the index names tensors that the shard lacks", where=path, found=shard, expected=_some(absent)
            )
        extra = sorted(header.tensors.keys() - indexed)
        if extra:
            raise CheckpointError(
                "a shard holds tensors that the index does not place there",
                where=path,
                found=f"{_some(extra)} in {shard}",
            )


def _refuse_duplicates(headers: Mapping[str, Header]) -> None:
    seen: dict[str, str] = {}
    for shard, header in headers.items():
        for name in header.tensors:
            if name in seen:
                raise CheckpointError(f"tensor {name!r} is in two shards", found=f"{seen[name]} and {shard}")
            seen[name] = shard


def _inside(directory: Path, name: str) -> Path:
    """Return `directory / name`; a symlink may only lead inside the directory or into the same Hub cache entry."""
    path = directory / name
    if os.path.lexists(path) and not path.is_file():
        raise CheckpointError("is not a regular file, or a link to none", where=path)
    if not path.is_symlink():
        return path
    real, root = path.resolve(), directory.resolve()
    # The Hub cache: models--org--name/snapshots/REV/file -> ../../blobs/HASH
    roots = (root, root.parent.parent / "blobs") if root.parent.name == "snapshots" else (root,)
    if not any(real.is_relative_to(allowed) for allowed in roots):
        raise CheckpointError("is a symbolic link out of the checkpoint", where=path, found=real)
    return path


def _some(names: list[str], limit: int = 4) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
