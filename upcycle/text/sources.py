"""Opens what `--data` names: a file, a directory of files, or a data set on the Hub."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from upcycle.checkpoint.digest import sha256_of
from upcycle.errors import InputError
from upcycle.text.files import READERS, reader_of
from upcycle.text.hub import HubSource
from upcycle.text.records import Cursor, Record, Source

EDGE = 2**16
"""Bytes at either end of a file that its hash covers."""

_HUB_NAME = re.compile(r"(?!.*\.\.)[\w][\w.-]*/[\w][\w.-]*(:[^:/]*){0,2}")
_KNOWN = ", ".join(READERS) + " (or with .gz, but for .parquet)"


@dataclass
class FileSource:
    """Local files, read one after the other."""

    name: str
    paths: list[Path]
    text_field: str
    files: list[list[str]] = field(init=False)

    def __post_init__(self) -> None:
        """Raise InputError for a file that is empty or of no known kind, before any is read."""
        self.files = [[path.name, f"{_size(path)} bytes", _edges(path)] for path in self.paths]

    def read(self, at: Cursor) -> Iterator[Record]:
        """Yield the records after a place; raise InputError naming file and line when one is wrong."""
        for number in range(at.file, len(self.paths)):
            path, record = self.paths[number], None
            reader = reader_of(path)
            if reader is not None:  # `_size` saw to it
                for record in reader(path, at, self.text_field):
                    yield record
            if record is None and at.offset == 0:
                raise InputError("there is no text in it", where=path)
            at = Cursor(number + 1, unit=at.unit if record is None else record.after.unit)


def _edges(path: Path) -> str:
    """A hash of both ends of a file, by which a file that changed between two runs is noticed, nearly always."""
    with path.open("rb") as file:
        data = file.read(EDGE)
        file.seek(max(path.stat().st_size - EDGE, 0))
        return sha256_of(data + file.read(EDGE))[:16]


def source_of(name: str, text_field: str = "text") -> Source:
    """Return the source of that name; raise InputError when there is none."""
    path = Path(name)
    if path.is_dir():
        return FileSource(name, _listed(path), text_field)
    if path.exists():
        return FileSource(name, [path], text_field)
    if _HUB_NAME.fullmatch(name) and reader_of(path) is None:
        return HubSource(name, text_field)
    hint = "a data set on the Hub is ORG/NAME[:CONFIG[:SPLIT]]" if reader_of(path) is None else None
    raise InputError("no such file or directory", where=name, hint=hint)


def _listed(directory: Path) -> list[Path]:
    """The files of a directory that have a known kind, by name; a README beside them is nobody's mistake."""
    try:
        paths = sorted(path for path in directory.iterdir() if reader_of(path) and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=directory) from None
    if not paths:
        hint = "files in directories below it are not taken"
        raise InputError("no text in this directory", where=directory, expected=f"files named {_KNOWN}", hint=hint)
    return paths


def _size(path: Path) -> int:
    if reader_of(path) is None:
        raise InputError("unknown kind of file", where=path, found=path.suffix or "no suffix", expected=_KNOWN)
    if not path.is_file():
        raise InputError("is not a regular file", where=path)
    if not (size := path.stat().st_size):
        raise InputError("the file is empty", where=path)
    return size
