"""Files to records: what is in them, where they are, and what is said of those that are wrong."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upcycle.errors import InputError
from upcycle.text import files
from upcycle.text.records import Chat, Cursor, Pair, Record, Text
from upcycle.text.sources import source_of

ROWS = [{"text": f"row {number}"} for number in range(20)]
START = Cursor()
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def read(path: Path, at: Cursor = START, text_field: str = "text") -> list[Record]:
    return list(source_of(str(path), text_field).read(at))


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return path


def write_gz(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data))
    return path


def write_directory(path: Path, rows: list) -> Path:
    path.mkdir()
    write_parquet(path / "b.parquet", rows[:8])
    write_jsonl(path / "a.jsonl", rows[8:])
    (path / "c.txt").write_text("The end.\n")
    (path / "README.md").write_text("Not read.")
    (path / ".hidden.txt").write_text("Not read.")
    return path


KINDS: dict[str, Callable[[Path], Path]] = {
    "txt": lambda home: (home / "a.txt", (home / "a.txt").write_text("A line of text.\n" * 3000))[0],
    "txt.gz": lambda home: write_gz(home / "a.txt.gz", b"A line of text.\n" * 3000),
    "jsonl": lambda home: write_jsonl(home / "a.jsonl", ROWS),
    "jsonl.gz": lambda home: write_gz(home / "a.jsonl.gz", "\n".join(map(json.dumps, ROWS)).encode()),
    "parquet": lambda home: write_parquet(home / "a.parquet", ROWS),
    "directory": lambda home: write_directory(home / "all", ROWS),
}
"""Kind -> a function that writes a source of that kind into a directory."""


def joined(records: list[Record]) -> str:
    return "".join(record.content.text for record in records if isinstance(record.content, Text))


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_reading_goes_on_at_every_cursor(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path)
    records = read(path)
    assert len(records) >= 3
    assert [record.unit for record in records] == list(range(len(records)))
    for number, record in enumerate(records):
        assert read(path, record.after) == records[number + 1 :]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_rows(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path)
    assert [record.content for record in read(path)] == [Text(row["text"]) for row in ROWS]
    assert read(path)[16].where == f"{path}:{'row ' if kind == 'parquet' else ''}17"


def test_a_directory_is_read_by_name(tmp_path: Path) -> None:
    records = read(KINDS["directory"](tmp_path))
    order = [*ROWS[8:], *ROWS[:8], {"text": "The end.\n"}]
    assert [record.content for record in records] == [Text(row["text"]) for row in order]


def test_blank_lines_and_a_byte_order_mark_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n  \n{"text": "two"}')
    assert [(record.content, record.where) for record in read(path)] == [
        (Text("one"), f"{path}:1"),
        (Text("two"), f"{path}:4"),
    ]
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\xef\xbb\xbftwo")
    assert joined(read(path)) == "one\r\n\ufefftwo"


def test_kinds_of_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": "2+2=", "completion": "4"},
        {"messages": TALK, "prompt": "Hi"},
        {"text": "a", "messages": TALK},
        {"messages": [*TALK, {"role": "assistant", "tool_calls": [{"name": "f"}], "content": None}]},
    ]
    contents = [record.content for record in read(write_jsonl(tmp_path / "a.jsonl", rows))]
    call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    assert contents == [Pair("2+2=", "4"), Chat(TALK), Text("a"), Chat([*TALK, call])]


def test_messages_in_parquet(tmp_path: Path) -> None:
    """Arrow gives all messages all fields, null where there was none."""
    rows = [{"messages": TALK, "id": 1}, {"messages": [{**TALK[0], "name": "Ann"}, TALK[1]], "id": 2}]
    contents = [record.content for record in read(write_parquet(tmp_path / "a.parquet", rows))]
    assert contents == [Chat(TALK), Chat([{**TALK[0], "name": "Ann"}, TALK[1]])]


def test_another_field(tmp_path: Path) -> None:
    for path in (
        write_jsonl(tmp_path / "a.jsonl", [{"body": "b"}]),
        write_parquet(tmp_path / "a.parquet", [{"body": "b"}]),
    ):
        assert read(path, text_field="body")[0].content == Text("b")


# -- long texts -------------------------------------------------------------------------------------------------------


@given(
    lines=st.lists(st.text(alphabet="ab \u00e9\u4e2d\U0001f600\t", max_size=12), min_size=1, max_size=12),
    piece=st.integers(4, 20),
)
def test_pieces_are_the_text(lines: list[str], piece: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = "\n".join(lines)
    if not text:
        return
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PIECE", piece)
        records = read(path)
        assert all(read(path, record.after) == records[number + 1 :] for number, record in enumerate(records))
    assert joined(records) == text
    contents = [record.content for record in records if isinstance(record.content, Text)]
    assert [content.starts for content in contents] == [True, *[False] * (len(records) - 1)]
    assert [content.ends for content in contents] == [*[False] * (len(records) - 1), True]
    assert all(0 < len(content.text.encode()) <= piece for content in contents)
    before = [1 + joined(records[:number]).count("\n") for number in range(len(records))]
    assert [record.where for record in records] == [f"{path}:{line}" for line in before]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("abcde\nf\n\nxyz", ["abcde\n", "f\n\nxyz"]),  # between two lines with text, rather than after an empty one
        ("a\nbcde fgh", ["a\nbcde", " fgh"]),  # not in the first half
        ("abc\n\ndefghij", ["abc\n\n", "defghij"]),  # after any line
        ("abc def ghij", ["abc def", " ghij"]),  # before any word
        ("abcdefgh" * 2, ["abcdefgh", "abcdefgh"]),
        ("abcdefg\u00e9abc", ["abcdefg", "\u00e9abc"]),  # not inside of a character
    ],
)
def test_where_a_text_is_cut(text: str, pieces: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE", 8)
    (tmp_path / "a.txt").write_text(text)
    assert [joined([record]) for record in read(tmp_path / "a.txt")] == pieces


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(kind: str, tmp_path: Path) -> None:
    path, text = tmp_path / f"a.{kind}", "A line of text.\n" * 1_000_000
    if kind == "parquet":
        rows = pa.table({"text": [text[:1000]] * 16_000})
        pq.write_table(rows, path, row_group_size=1000, use_dictionary=False)
    elif kind == "jsonl":
        path.write_text((json.dumps({"text": text[:1000]}) + "\n") * 16_000)
    else:
        path.write_bytes(gzip.compress(text.encode(), 1) if kind == "txt.gz" else text.encode())
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    length, most = 0, 0
    for record in source_of(str(path)).read(Cursor()):
        length += record.size
        most = max(most, pa.total_allocated_bytes() - arrow)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length == 16_000_000
    assert peak + most < 4_000_000


# -- what is refused --------------------------------------------------------------------------------------------------

GOOD = b'{"text": "good"}\n'
TALK_LINE = b'{"messages": %s}\n'

TWO_THOUSAND_LINES = b"A line of text.\n" * 2000

WRONG: dict[str, tuple[str, bytes, str]] = {
    "not UTF-8": ("a.txt", b"one\ntwo\nthr\xffee\n", "{path}:3: is not UTF-8 text; found byte 0xff"),
    "UTF-16": ("a.txt", "one".encode("utf-16"), "{path}:1: is not UTF-8 text; found byte 0xff"),
    "not UTF-8, late": ("a.txt", TWO_THOUSAND_LINES + b"\xc3(", "{path}:2001: is not UTF-8 text; found byte 0xc3"),
    "not UTF-8, a line": ("a.jsonl", GOOD * 4 + b'{"text": "\xe9"}\n', "{path}:5: is not UTF-8 text; found byte 0xe9"),
    "no JSON": ("a.jsonl", GOOD * 2 + b"good\n", "{path}:3: not valid JSON (Expecting value"),
    "JSON over lines": ("a.jsonl", b'{\n "text": "a"\n}\n', "every line must be a JSON object by itself"),
    "an array": ("a.jsonl", b'["a", "b"]\n', "{path}:1: wrong JSON document; found a list, expected an object"),
    "deep": ("a.jsonl", b"[" * 200_000, "{path}:1: not valid JSON (nested too deeply)"),
    "long number": ("a.jsonl", b"9" * 5000, "{path}:1: not valid JSON (Exceeds the limit"),
    "other fields": (
        "a.jsonl", GOOD + b'{"title": 1, "body": 2}\n',
        "{path}:2: no text in it; found the fields title, body, expected text, or messages, or conversations, "
        "or prompt and completion, or instruction and output; --text-field",
    ),
    "no fields": ("a.jsonl", b"{}\n", "{path}:1: no text in it; found no field"),
    "half a pair": ("a.jsonl", b'{"prompt": "a"}\n', "{path}:1: no text in it; found the fields prompt"),
    "wrong type": ("a.jsonl", GOOD + b'{"text": 7}\n', "{path}:2: wrong type of text; found a number, expected a text"),
    "null": ("a.jsonl", b'{"text": null}\n', "{path}:1: wrong type of text; found null"),
    "wrong completion": ("a.jsonl", b'{"prompt": "a", "completion": ["b"]}', "wrong type of completion; found a list"),
    "half a surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', "{path}:1: text holds half of a surrogate pair"),
    "no message": ("a.jsonl", GOOD + TALK_LINE % b"[]", "{path}:2: wrong messages; found none"),
    "one message": ("a.jsonl", TALK_LINE % b'{"role": "user"}', "{path}:1: wrong messages; found an object"),
    "bare message": ("a.jsonl", TALK_LINE % b'["Hi"]', "{path}:1: message 1: wrong message; found a text"),
    "unknown role": (
        "a.jsonl", TALK_LINE % b'[{"role": "user", "content": "a"}, {"role": "gpt", "content": "b"}]',
        "{path}:1: message 2: unknown role; found 'gpt', expected system, developer, user, assistant, tool",
    ),
    "no content": ("a.jsonl", TALK_LINE % b'[{"role": "user"}]', "message 1: wrong type of content; found null"),
    "no answer": ("a.jsonl", TALK_LINE % b'[{"role": "user", "content": "a"}]', "{path}:1: nobody answers"),
    "empty": ("a.txt", b"", "{path}: the file is empty"),
    "blank": ("a.jsonl", b"\n \n", "{path}: there is no text in it"),
    "empty, packed": ("a.txt.gz", gzip.compress(b""), "{path}: there is no text in it"),
    "not packed": ("a.txt.gz", b"some text", "{path}: cannot be read (Not a gzipped file"),
    "torn": ("a.txt.gz", gzip.compress(b"some text" * 99)[:-9], "{path}: cannot be read (Compressed file ended"),
    "damaged": ("a.jsonl.gz", gzip.compress(GOOD)[:12] + b"\xff" * 30, "{path}: cannot be read ("),
    "no parquet": ("a.parquet", b"some text", "{path}: not a sound parquet file ("),
    "unknown": ("a.csv", b"a,b", "{path}: unknown kind of file; found .csv, expected .txt, .jsonl"),
    "packed parquet": ("a.parquet.gz", b"a", "{path}: unknown kind of file; found .gz"),
    "no suffix": ("text", b"a", "{path}: unknown kind of file; found no suffix"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(case: str, tmp_path: Path) -> None:
    name, data, message = WRONG[case]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(path)
    assert message.format(path=path) in str(caught.value)


def test_wrong_rows_of_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [*ROWS[:9], {"text": None}])
    with pytest.raises(InputError, match=f"{path}:row 10: wrong type of text; found null"):
        read(path)
    path = write_parquet(tmp_path / "b.parquet", [{"body": "b"}])
    with pytest.raises(InputError, match=f"{path}: no text in it; found the fields body"):
        read(path)


def test_torn_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{path}: not a sound parquet file"):
        read(path)


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b'{"text": "' + b"a" * 64)
    with pytest.raises(InputError, match=f"{path}:2: the line is too long; expected less than 64 bytes"):
        read(path)


@pytest.mark.parametrize(
    "name", ["book.txt", "data/book.jsonl.gz", "/no/such/place", "data:train", "a/b/c", "../up/data"]
)
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: no such file or directory"):
        source_of(name)


def test_a_directory_without_text(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.txt").write_text("a")
    with pytest.raises(InputError, match=r"no text in this directory.*files in directories below it are not taken"):
        source_of(str(tmp_path))
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(InputError, match=r"b\.txt: is not a regular file"):
        source_of(str(tmp_path))
