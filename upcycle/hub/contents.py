"""Chooses the files of a directory that are published, and checks them: shards, index, receipt, no pickled weights.

The list names what is published, not what is left out, because a directory of work holds much that is not for others:
states of optimizers, logs, paths of this machine. `Contents.left` tells which files stay here.
"""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from upcycle.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter, open_adapter
from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.header import Header, Shapes, read_header
from upcycle.checkpoint.journal import is_bookkeeping
from upcycle.checkpoint.lineage import LINEAGE_FILE
from upcycle.checkpoint.place import METRICS_FILE, RECEIPT_FILE, VERIFICATION_FILE
from upcycle.checkpoint.reader import (
    CHAT_TEMPLATE_FILES,
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    TOKENIZER_FILES,
    Checkpoint,
    inside,
    open_checkpoint,
)
from upcycle.checkpoint.strict_json import parse_object
from upcycle.errors import CheckpointError, InputError
from upcycle.hub.names import check_patterns, fits_any, is_sound, printable
from upcycle.hub.places import without_places
from upcycle.hub.records import VERIFY_AGAIN, check_receipt, verified_weights

MODEL_FILES = (
    CONFIG_FILE, GENERATION_FILE, INDEX_FILE, ADAPTER_CONFIG, *TOKENIZER_FILES, *CHAT_TEMPLATE_FILES,
)  # fmt: skip
"""Files beside the weights that programs read to load the model."""

RECORD_FILES = (RECEIPT_FILE, VERIFICATION_FILE, LINEAGE_FILE, METRICS_FILE)
"""Files that say how the model came to be."""

_PAPERS = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|COPYING|CITATION)([-_.].*)?", re.IGNORECASE)
_TAKEN_SUFFIXES = (".gguf", ".md", ".png", ".svg", ".jpg", ".jpeg", ".webp")
PICTURES = "plots"
"""Where `upcycle plot` puts what it draws."""


@dataclass(frozen=True)
class OnBranch:
    """A large file that is in the repository already, on another branch."""

    revision: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Size, time and inode of a file, so that one that is changed or replaced meanwhile is noticed."""

    size: int  # bytes
    changed: int  # nanoseconds
    inode: int

    @staticmethod
    def of(fact: os.stat_result) -> "Seen":
        """Return what the file system says."""
        return Seen(fact.st_size, fact.st_mtime_ns, fact.st_ino)


@dataclass(frozen=True)
class Item:
    """One file of a repository."""

    name: str  # its path there
    source: Path | bytes | OnBranch
    seen: Seen | None = None  # of a path, before anything of it was checked
    verified: str | None = None  # SHA-256 that it must have

    @property
    def size(self) -> int:
        """In bytes."""
        if isinstance(self.source, Path):
            return self.seen.size if self.seen else self.source.stat().st_size
        return len(self.source) if isinstance(self.source, bytes) else self.source.size

    def open(self) -> io.BufferedIOBase:
        """Return a file to read it from, empty of what is not here; raise CheckpointError when it has changed."""
        if not isinstance(self.source, Path):
            return io.BytesIO(self.source if isinstance(self.source, bytes) else b"")
        self.check_unchanged()
        try:
            return self.source.open("rb")
        except OSError:
            raise self._changed() from None

    def read(self) -> bytes:
        """Return its bytes; none of what is not here."""
        with self.open() as file:
            return file.read()

    def look(self) -> "Item":
        """Return the same, which has been looked at."""
        if self.seen or not isinstance(self.source, Path):
            return self
        return replace(self, seen=Seen.of(self.source.stat()))

    def check_unchanged(self) -> None:
        """Raise CheckpointError when the file is gone, or is not what it was when it was looked at."""
        if self.seen is None or not isinstance(self.source, Path):
            return
        try:
            same = Seen.of(self.source.stat()) == self.seen
        except OSError:
            same = False
        if not same:
            raise self._changed()

    def check_verified(self, sha256: str) -> None:
        """Raise CheckpointError when these are not the weights that a verification is of."""
        if self.verified not in (None, sha256):
            raise CheckpointError(
                "are not the weights that were verified", where=str(self.source), found=f"SHA-256 {sha256[:16]}",
                expected=f"{self.verified:.16}, of {VERIFICATION_FILE}", hint=VERIFY_AGAIN,
            )  # fmt: skip

    def _changed(self) -> CheckpointError:
        return CheckpointError(
            "changed since it was checked", where=str(self.source), hint="push it when nothing writes to it"
        )


@dataclass(frozen=True)
class Contents:
    """The files of a directory that are to be published, and what they say of the model."""

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

    def otherwise(self, files: Mapping[str, bytes]) -> "Contents":
        """Return the same with files that are published otherwise than they are here, and records that say so.

        The receipt names the hashes of what is published, and a verification the hash of that receipt.
        """
        new = [Item(name, data) for name, data in files.items()]
        old = {item.name: item for item in self.items}
        if files and RECEIPT_FILE in old:
            receipt = parse_object(old[RECEIPT_FILE].read(), self.directory / RECEIPT_FILE)
            hashes = {name: sha256_of(data) for name, data in files.items() if name in receipt["files"]}
            data = json.dumps({**receipt, "files": {**receipt["files"], **hashes}}, indent=2).encode() + b"\n"
            new += [Item(RECEIPT_FILE, data)] if hashes else []
            if hashes and VERIFICATION_FILE in old:
                entry = parse_object(old[VERIFICATION_FILE].read(), self.directory / VERIFICATION_FILE)
                entry["receipt_sha256"] = sha256_of(data)
                new.append(Item(VERIFICATION_FILE, json.dumps(entry, indent=1).encode() + b"\n"))
        config = files.get(ADAPTER_CONFIG if self.kind == "adapter" else CONFIG_FILE)
        said = self.config if config is None else parse_object(config, self.directory)
        return replace(self.with_items(*new), config=said)


def read_contents(directory: Path, include: Sequence[str] = ()) -> Contents:
    """Return what of `directory` is published: a model or an adapter, its records, its papers and its pictures.

    `include` are patterns of names of further files. Raises CheckpointError when the weights, the index or the
    receipt are not sound, InputError when it is unfinished work or no model at all.
    """
    check_patterns(include)
    _refuse_unfinished(directory)
    files = _files(directory)  # looked at before anything is read of them
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
    check_receipt(directory, headers)
    verified = verified_weights(directory, headers)
    taken = _taken(directory, files, headers, include, verified)
    items = tuple(Item(name, directory / name, files.get(name), (verified or {}).get(name)) for name in taken)
    kind: Literal["model", "adapter"] = "adapter" if is_adapter(directory) else "model"
    tensors = [item for header in headers.values() for item in header.tensors.items()]
    shapes = {name: (spec.dtype, spec.shape) for name, spec in tensors}
    contents = Contents(directory, kind, config, shapes, items, tuple(_left(directory, taken)))
    return contents.otherwise(without_places({item.name: item.read for item in items}, directory))


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


def _taken(
    directory: Path,
    files: Mapping[str, Seen],
    headers: Mapping[str, Header],
    include: Sequence[str],
    verified: Mapping[str, str] | None,
) -> list[str]:
    names = {*headers, *MODEL_FILES, *RECORD_FILES} - {INDEX_FILE if is_adapter(directory) else ADAPTER_CONFIG}
    if SINGLE_FILE in headers:
        names.discard(INDEX_FILE)
    present = {name for name in names if inside(directory, name).exists()}
    for name in files:
        suffix = Path(name).suffix.lower()
        fits = "/" not in name and (bool(_PAPERS.fullmatch(name)) or suffix in _TAKEN_SUFFIXES)
        picture = name.startswith(f"{PICTURES}/") and suffix in (".png", ".svg")
        if fits or picture or fits_any(name, include):
            present.add(name if "/" in name else inside(directory, name).name)
    unmatched = [pattern for pattern in include if not any(fits_any(name, (pattern,)) for name in present)]
    if unmatched:
        raise InputError("--include matches no file", where=directory, found=unmatched[0])
    return sorted(present if verified is not None else present - {VERIFICATION_FILE})


def _left(directory: Path, taken: Sequence[str], under: str = "") -> Iterator[str]:
    """Yield what is not published, directories of which nothing is by their names alone."""
    for entry in sorted((directory / under).iterdir()):
        name = f"{under}{entry.name}"
        if not entry.is_dir():
            yield from [] if name in taken else [printable(name)]
        elif any(other.startswith(f"{name}/") for other in taken):
            yield from _left(directory, taken, f"{name}/")
        else:
            yield f"{printable(name)}/"


def _files(directory: Path) -> dict[str, Seen]:
    """Return the files that may be published by their names, and what they are: at the top, and in directories there.

    Of these no links are followed. What of the files at the top is a link is looked at where it leads.
    """
    found: dict[str, Seen] = {}
    for entry in sorted(directory.iterdir()):
        folder = entry.is_dir() and not entry.is_symlink()
        for path in sorted(entry.rglob("*")) if folder and is_sound(entry.name) else (entry,):
            name = path.relative_to(directory).as_posix()
            if is_sound(name) and path.is_file() and not (folder and path.is_symlink()):
                found[name] = Seen.of(path.stat())
    return found
