"""What of a directory goes to the Hub, and whether it is what it says: shards, index, receipt, no strange weights.

What is published is named, not what is left out: a directory of work holds much that is not for others (states of
optimizers, logs, paths of this machine). `Contents.left` says what stays here.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from upcycle.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter, open_adapter
from upcycle.checkpoint.header import Header, read_header
from upcycle.checkpoint.journal import is_bookkeeping
from upcycle.checkpoint.lineage import LINEAGE_FILE
from upcycle.checkpoint.place import RECEIPT_FILE, VERIFICATION_FILE
from upcycle.checkpoint.reader import (
    CHAT_TEMPLATE_FILES,
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    TOKENIZER_FILES,
    Checkpoint,
    inside,
    is_plain_name,
    open_checkpoint,
)
from upcycle.checkpoint.strict_json import read_object
from upcycle.errors import CheckpointError, InputError

MODEL_FILES = (
    CONFIG_FILE, GENERATION_FILE, INDEX_FILE, ADAPTER_CONFIG, *TOKENIZER_FILES, *CHAT_TEMPLATE_FILES,
)  # fmt: skip
"""Files beside the weights that readers obey."""

METRICS_FILE = "metrics.jsonl"
RECORD_FILES = (RECEIPT_FILE, VERIFICATION_FILE, LINEAGE_FILE, METRICS_FILE)
"""Files that say how the model came to be."""

_WEIGHTS = re.compile(r"(model|adapter_model|pytorch_model)([-.].*)?\.(safetensors|bin)")
_STALE_INDEX = ("pytorch_model.bin.index.json", "adapter_model.bin")
_PAPERS = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|COPYING|CITATION)([-_.].*)?", re.IGNORECASE)
_OLD_PICTURES = re.compile(r"plots/(losses|router-losses|optimizer|speed|layers|load(-over-steps)?)(-\d+)?\.(png|svg)")
"""What `upcycle plot` draws, and an earlier push has brought."""
_TAKEN_SUFFIXES = (".gguf", ".md", ".png", ".svg", ".jpg", ".jpeg", ".webp")
PICTURES = "plots"
"""Where `upcycle plot` puts what it draws."""

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor -> its safetensors dtype and its shape."""


@dataclass(frozen=True)
class OnBranch:
    """A large file that is in the repository already, on another branch."""

    revision: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Item:
    """One file of a repository."""

    name: str  # its path there
    source: Path | bytes | OnBranch

    @property
    def size(self) -> int:
        """In bytes."""
        if isinstance(self.source, Path):
            return self.source.stat().st_size
        return len(self.source) if isinstance(self.source, bytes) else self.source.size

    def read(self) -> bytes:
        """Return its bytes; none of what is not here."""
        if isinstance(self.source, Path):
            return self.source.read_bytes()
        return self.source if isinstance(self.source, bytes) else b""


@dataclass(frozen=True)
class Contents:
    """What is to be published of a directory."""

    directory: Path
    kind: Literal["model", "adapter"]
    config: Mapping[str, Any]
    shapes: Shapes
    items: tuple[Item, ...]
    left: tuple[str, ...]  # names of what stays here

    def with_items(self, *items: Item) -> "Contents":
        """Return the same with more files, or others in the place of those of their names."""
        new = {item.name for item in items}
        kept = (item for item in self.items if item.name not in new)
        return replace(self, items=tuple(sorted((*kept, *items), key=lambda item: item.name)))


def read_contents(directory: Path, include: Sequence[str] = ()) -> Contents:
    """Return what of `directory` is published: a model or an adapter, its records, its papers and its pictures.

    `include` are patterns of names of further files. Raises CheckpointError when the weights, the index or the
    receipt are not sound, InputError when it is unfinished work or no model at all.
    """
    _refuse_unfinished(directory)
    if not any((directory / name).is_file() for name in (CONFIG_FILE, ADAPTER_CONFIG)):
        raise InputError("holds no model", where=directory, expected=f"{CONFIG_FILE} or {ADAPTER_CONFIG}")
    if is_adapter(directory):
        adapter = open_adapter(directory)
        adapter.check_kind()
        config, headers = adapter.config, {ADAPTER_WEIGHTS: read_header(directory / ADAPTER_WEIGHTS)}
    else:
        opened = open_checkpoint(directory)
        config, headers = opened.config, dict(opened.headers)
        _refuse_code(opened)
    _check_receipt(directory, headers)
    taken = _taken(directory, headers, include)
    items = tuple(Item(name, directory / name) for name in sorted(taken))
    kind: Literal["model", "adapter"] = "adapter" if is_adapter(directory) else "model"
    tensors = [item for header in headers.values() for item in header.tensors.items()]
    shapes = {name: (spec.dtype, spec.shape) for name, spec in tensors}
    return Contents(directory, kind, config, shapes, items, tuple(_left(directory, taken)))


def is_of_a_model(name: str) -> bool:
    """Whether a file of a repository is of the model that is there, so that it must go when another takes its place.

    A reader would take it for a part of the new one: a single file of weights for all of them, a chat template.
    """
    return bool(_WEIGHTS.fullmatch(name) or _OLD_PICTURES.fullmatch(name)) or name in (
        *MODEL_FILES,
        *RECORD_FILES,
        *_STALE_INDEX,
    )


def _refuse_unfinished(directory: Path) -> None:
    if not directory.is_dir():
        raise CheckpointError("no such model directory", where=directory)
    if any(is_bookkeeping(path.name) for path in directory.iterdir()):
        raise InputError(
            "is unfinished, or still being written", where=directory, hint="the same command with --resume finishes it"
        )
    if (directory / "training.json").is_file() and not any(
        (directory / name).is_file() for name in (CONFIG_FILE, ADAPTER_CONFIG)
    ):
        raise InputError(
            "is an unfinished training", where=directory,
            hint="finish it with `upcycle train --resume`, or push one of its checkpoints",
        )  # fmt: skip


def _refuse_code(checkpoint: Checkpoint) -> None:
    if "auto_map" in checkpoint.config:
        raise InputError(
            "needs code of its own to be loaded, which upcycle does not publish", where=checkpoint.directory,
            found=f"auto_map in {CONFIG_FILE}", hint="`hf upload` takes any directory",
        )  # fmt: skip


def _check_receipt(directory: Path, headers: Mapping[str, Header]) -> None:
    """A receipt tells the truth: the files that it names are there, as they were written."""
    path = directory / RECEIPT_FILE
    if not path.is_file():
        return
    files = read_object(path).get("files")
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise CheckpointError("damaged receipt", where=path, expected="files")
    for name, digest in sorted(files.items()):
        found = headers[name].sha256 if name in headers else _sha256(directory, name)
        whole = _sha256(directory, name) if name == ADAPTER_WEIGHTS else None  # of adapters all of it is hashed
        if digest not in (found, whole):
            raise CheckpointError(
                f"{name} is not what the receipt says that it was", where=directory,
                found=f"SHA-256 {found[:16]}" if found else "no such file", expected=str(digest)[:16],
                hint=f"make it again, or remove {RECEIPT_FILE} to publish it without its record",
            )  # fmt: skip
    strange = sorted(headers.keys() - files.keys())
    if strange:
        raise CheckpointError("weights are there that the receipt does not name", where=directory, found=strange[0])


def _sha256(directory: Path, name: str) -> str | None:
    if not is_plain_name(name) or not (directory / name).is_file():
        return None
    with (directory / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _taken(directory: Path, headers: Mapping[str, Header], include: Sequence[str]) -> list[str]:
    names = [*headers, *MODEL_FILES, *RECORD_FILES]
    if is_adapter(directory):
        names.remove(INDEX_FILE)
    else:
        names.remove(ADAPTER_CONFIG)
    if SINGLE_FILE in headers:
        names.remove(INDEX_FILE)
    present = {name for name in names if inside(directory, name).exists()}
    for path in _files(directory):
        name = path.relative_to(directory).as_posix()
        fits = "/" not in name and (bool(_PAPERS.fullmatch(name)) or path.suffix.lower() in _TAKEN_SUFFIXES)
        picture = name.startswith(f"{PICTURES}/") and path.suffix in (".png", ".svg")
        if fits or picture or any(fnmatchcase(name, pattern) for pattern in include):
            present.add(name if "/" in name else inside(directory, name).name)
    unmatched = [pattern for pattern in include if not any(fnmatchcase(name, pattern) for name in present)]
    if unmatched:
        raise InputError("--include matches no file", where=directory, found=unmatched[0])
    return sorted(present)


def _left(directory: Path, taken: Sequence[str]) -> Iterator[str]:
    """Yield what is not published, directories by their names alone."""
    for entry in sorted(directory.iterdir()):
        if entry.is_dir():
            if not any(name.startswith(f"{entry.name}/") for name in taken):
                yield f"{entry.name}/"
        elif entry.name not in taken:
            yield entry.name


def _files(directory: Path) -> Iterator[Path]:
    """Yield the files at the top that are no secrets by their names, and those of the directories beside them."""
    for entry in sorted(directory.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from (path for path in sorted(entry.rglob("*")) if path.is_file() and not path.is_symlink())
        elif entry.is_file():
            yield entry
