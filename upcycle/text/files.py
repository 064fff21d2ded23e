"""Reads local files record by record: text in pieces, JSON by lines, parquet by batches of rows.

Memory does not grow with the file, and every error names the file and the line or row. A reader starts at a cursor:
bytes and row groups that lie before it are not read (but those of a .gz, which can only be unpacked from its start).
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from upcycle.errors import InputError
from upcycle.text.forms import columns_of, content_of, without_nulls
from upcycle.text.records import Cursor, Record, Text

PIECE = 2**11
"""Bytes of a piece of text. Pieces are tokenised one by one, so that a token or two may differ at their edges: they are
big enough that this does not matter, and so small that even of one book about the share asked for is held out."""

MAX_LINE = 2**28
"""Most bytes of a line of JSON; a file without line breaks would fill the memory before it could be refused."""

ROWS = 64
"""Rows of a parquet file that are in memory at a time; a long document may have a megabyte."""

_CUTS = [re.compile(rb"(?s).*\S\n(?=\S)"), re.compile(rb"(?s).*\n"), re.compile(rb"(?s).*\S(?=[ \t]\S)")]

Reader: TypeAlias = Callable[[Path, Cursor, str], Iterator[Record]]


def reader_of(path: Path) -> Reader | None:
    """Return the function that reads files with this suffix, or None for an unknown one."""
    packed = path.suffix == ".gz"
    reader = READERS.get((Path(path.stem).suffix if packed else path.suffix).lower())
    return None if packed and reader is read_parquet else reader


def read_txt(path: Path, at: Cursor, text_field: str) -> Iterator[Record]:  # noqa: ARG001
    """Yield the pieces of a file of UTF-8 text, which is one document."""
    offset, line, unit = at.offset, at.line, at.unit
    with _opened(path) as file:
        file.seek(offset)
        data = file.read(PIECE + 1)
        while data:
            ends = len(data) <= PIECE
            cut = len(data) if ends else _cut(data)
            content = Text(_decoded(data[:cut], path, line, first=offset == 0), starts=offset == 0, ends=ends)
            where = f"{path}:{line + 1}"
            offset, line = offset + cut, line + data.count(b"\n", 0, cut)
            yield Record(content, where, unit, Cursor(at.file, offset, line, unit + 1))
            unit += 1
            data = data[cut:] + file.read(PIECE + 1 - (len(data) - cut))


def _cut(data: bytes) -> int:
    """Return where a piece ends: between two lines with text, else after any line, before any word, or anywhere.

    Tokenizers seldom join what lies on both sides of such a place. The first half is not looked at.
    """
    for pattern in _CUTS:
        if found := pattern.match(data, len(data) // 2):
            return found.end() if found.end() < len(data) else len(data) - 1
    cut = len(data) - 1
    while cut > len(data) - 4 and data[cut] & 0xC0 == 0x80:  # inside of a character
        cut -= 1
    return cut


def _decoded(data: bytes, path: Path, line: int, *, first: bool) -> str:
    """Return UTF-8 as text, without the byte order mark that some editors put first; `line` lines lie before it."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8 text", where=f"{path}:{line}", found=f"byte {data[error.start]:#04x}") from None
    return text.removeprefix("\ufeff") if first else text


def read_jsonl(path: Path, at: Cursor, text_field: str) -> Iterator[Record]:
    """Yield a record for every line that is not blank."""
    offset, line, unit = at.offset, at.line, at.unit
    with _opened(path) as file:
        file.seek(offset)
        while data := file.readline(MAX_LINE):
            where = f"{path}:{line + 1}"
            if len(data) == MAX_LINE:
                raise InputError("the line is too long", where=where, expected=f"less than {MAX_LINE} bytes")
            text = _decoded(data, path, line, first=offset == 0)
            offset, line = offset + len(data), line + 1
            if text.strip():
                content = content_of(_json(text, where), where, text_field)
                yield Record(content, where, unit, Cursor(at.file, offset, line, unit + 1))
                unit += 1


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(
            f"not valid JSON ({reason})", where=where, hint="every line must be a JSON object by itself"
        ) from None


def read_parquet(path: Path, at: Cursor, text_field: str) -> Iterator[Record]:
    """Yield the rows of a parquet file; columns that the form of the rows does not need are not read."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with pq.ParquetFile(path) as file:
            columns = columns_of(file.schema_arrow.names, str(path), text_field)
            for number, row in enumerate(_rows(file, columns, at.offset), at.offset):
                where, unit = f"{path}:row {number + 1}", at.unit + number - at.offset
                content = content_of(without_nulls(row), where, text_field)
                yield Record(content, where, unit, Cursor(at.file, number + 1, unit=unit + 1))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"not a sound parquet file ({error})", where=path) from None


def _rows(file: Any, columns: list[str], skip: int) -> Iterator[dict[str, Any]]:
    """The rows after the first `skip`; row groups that lie before them are not read."""
    groups = list(range(file.num_row_groups))
    while groups and (size := file.metadata.row_group(groups[0]).num_rows) <= skip:
        skip -= size
        del groups[0]
    for batch in file.iter_batches(ROWS, row_groups=groups, columns=columns) if groups else ():
        yield from batch.slice(skip).to_pylist()
        skip = max(0, skip - batch.num_rows)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, unpacking it if it is a .gz; raise InputError when opening or reading fails."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"cannot be read ({reason})", where=path) from None


READERS: dict[str, Reader] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json-lines": read_jsonl,
    ".parquet": read_parquet,
}
