"""The forms that a row of data may have: what is read of each, what of it is in the loss, and what is refused."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from transformers import AutoTokenizer

from tests.text.test_chat import CHATML, in_loss
from upcycle.errors import InputError
from upcycle.text.encode import Encoder
from upcycle.text.forms import FORMS, content_of
from upcycle.text.records import Chat, Cursor, Pair, Record, Text
from upcycle.text.sources import source_of

ROOT = Path(__file__).parents[2]
ASK, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4."}
TALK = [ASK, ANSWER]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"x": {"type": "number"}}}}]


def read(row: dict[str, Any], text_field: str = "text") -> Text | Pair | Chat:
    return content_of(json.loads(json.dumps(row)), "a.jsonl:1", text_field)


def rows_of_docs() -> list[tuple[str, str, str]]:
    """Form, example and what is in the loss, from the table of docs/data.md."""
    lines = (ROOT / "docs/data.md").read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"\| ([^|]+) \| `(\{.*\})` \| `(.*)` \|", line) for line in lines)
    return [(row[1], row[2], row[3]) for row in found if row]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    tokenizer = deepcopy(AutoTokenizer.from_pretrained(ROOT / "upcycle/data/tiny"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return Encoder(tokenizer, eos="<|im_end|>")


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "expected"), [row[1:] for row in rows_of_docs()], ids=[r[0] for r in rows_of_docs()]
)
def test_the_examples_of_the_docs(example: str, expected: str, encoder: Encoder) -> None:
    record = Record(content_of(json.loads(example), "docs", "text"), "docs", 0, Cursor())
    (document,) = encoder.encode([record])
    end = "</s>" if isinstance(record.content, Text) else "<|im_end|>"
    assert in_loss(encoder.tokenizer, document) == [expected + end]


def test_the_docs_have_every_form() -> None:
    shown = [set(json.loads(example)) for _, example, _ in rows_of_docs()]
    assert all(any(set(form.needs) <= fields for fields in shown) for form in FORMS)
    assert len(shown) == 8


FOUND: dict[str, tuple[dict[str, Any], Text | Pair | Chat]] = {
    "tools": ({"messages": TALK, "tools": TOOLS}, Chat(TALK, TOOLS)),
    "tools as text": ({"messages": TALK, "tools": json.dumps(TOOLS)}, Chat(TALK, TOOLS)),
    "no tools": ({"messages": TALK, "tools": []}, Chat(TALK)),
    "no tools as text": ({"messages": TALK, "tools": " "}, Chat(TALK)),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "a"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"},
                {"from": "function", "value": "d"}, {"from": "tool", "value": "e"}, {"from": "gpt", "value": "f"},
            ],
            "tools": json.dumps(TOOLS),
            "id": 7,
        },
        Chat(
            [
                {"role": "system", "content": "a"}, {"role": "user", "content": "b"},
                {"role": "assistant", "content": "c"}, {"role": "tool", "content": "d"},
                {"role": "tool", "content": "e"}, {"role": "assistant", "content": "f"},
            ],
            TOOLS,
        ),
    ),
    "conversations with roles": ({"conversations": TALK}, Chat(TALK)),
    "a system field": (
        {"system": "Add.", "conversations": TALK}, Chat([{"role": "system", "content": "Add."}, *TALK])
    ),
    "a second system message": (
        {"system": "Add.", "messages": [{"role": "system", "content": "No."}, *TALK]},
        Chat([{"role": "system", "content": "No."}, *TALK]),
    ),
    "an empty system field": ({"system": "", "messages": TALK}, Chat(TALK)),
    "prompt of messages": ({"prompt": [ASK], "completion": [ANSWER]}, Chat(TALK)),
    "an answer in the prompt": (
        {"prompt": [*TALK, ASK], "completion": [ANSWER], "tools": TOOLS},
        Chat([*TALK, *TALK], TOOLS, frozenset({1})),
    ),
    "alpaca": ({"instruction": "Add.", "output": "4."}, Chat([{"role": "user", "content": "Add."}, ANSWER])),
    "alpaca, empty input": (
        {"instruction": "Add.", "input": "", "output": "4."}, Chat([{"role": "user", "content": "Add."}, ANSWER])
    ),
    "alpaca, input": (
        {"instruction": "Add.", "input": "2+2", "output": "4."},
        Chat([{"role": "user", "content": "Add.\n\n2+2"}, ANSWER]),
    ),
    "alpaca, text": ({"instruction": "Add.", "output": "4.", "text": "Add. 4."}, Text("Add. 4.")),
    "train": (
        {"messages": [ASK, {**ANSWER, "train": False}, {**ASK, "train": False}, {**ANSWER, "train": True}]},
        Chat([*TALK, *TALK], None, frozenset({1})),
    ),
    "weight": (
        {"messages": [ASK, {**ANSWER, "weight": 0}, ASK, {**ANSWER, "weight": 1.0}]},
        Chat([*TALK, *TALK], None, frozenset({1})),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_what_is_read(case: str) -> None:
    row, expected = FOUND[case]
    assert read(row) == expected


def test_nulls_of_tables_are_not_there(tmp_path: Path) -> None:
    """Arrow gives each tool the parameters of all others, null, at any depth."""
    other = [{"type": "function", "function": {"name": "say", "parameters": {"y": {"type": "string"}}}}]
    rows = [{"messages": TALK, "tools": TOOLS, "more": 1}, {"messages": TALK, "tools": other, "more": 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    contents = [record.content for record in source_of(str(tmp_path / "a.parquet")).read(Cursor())]
    assert contents == [Chat(TALK, TOOLS), Chat(TALK, other)]


def test_columns_of_tables(tmp_path: Path) -> None:
    """Of each form the fields that a row may have besides are read too."""
    rows: list[dict[str, Any]] = [
        {"instruction": "Add.", "input": "2+2", "output": "4.", "n": 1},
        {"instruction": "Add.", "output": "4."},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    asked = [record.content for record in source_of(str(tmp_path / "a.parquet")).read(Cursor())]
    assert asked == [read(row) for row in rows]


# -- what is refused --------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "role": (
        {"conversations": [{"from": "narrator", "value": "a"}]},
        "a.jsonl:1: message 1: unknown role; found from 'narrator', expected human, gpt, system, function",
    ),
    "value": ({"conversations": [{"from": "gpt", "value": 7}]}, "message 1: wrong type of value; found a number"),
    "nobody answers": ({"conversations": [{"from": "human", "value": "a"}]}, "nobody answers in this conversation"),
    "empty": ({"conversations": []}, "wrong messages; found none"),
    "half messages": ({"prompt": [ASK], "completion": "4."}, "completion: wrong messages; found a text"),
    "half texts": ({"prompt": "2+2?", "completion": [ANSWER]}, "wrong type of completion; found a list"),
    "completion without an answer": ({"prompt": [ASK], "completion": [ASK]}, "nobody answers in this conversation"),
    "output": ({"instruction": "Add.", "output": 4}, "wrong type of output; found a number, expected a text"),
    "input": ({"instruction": "Add.", "input": ["a"], "output": "4."}, "wrong type of input; found a list"),
    "system": ({"system": 7, "messages": TALK}, "wrong type of system; found a number"),
    "tools": ({"messages": TALK, "tools": {"name": "add"}}, "wrong type of tools; found an object, expected a list of"),
    "tools of texts": ({"messages": TALK, "tools": ["add"]}, "wrong type of tools; found a list"),
    "tools, torn": ({"messages": TALK, "tools": "[{"}, "a.jsonl:1: tools is not valid JSON"),
    "train": ({"messages": [ASK, {**ANSWER, "train": "no"}]}, "message 2: wrong type of train; found a text"),
    "weight": ({"messages": [ASK, {**ANSWER, "weight": 0.5}]}, "message 2: wrong weight; found 0.5, expected 0 or 1"),
    "a question in the loss": (
        {"messages": [{**ASK, "train": True}, ANSWER]},
        "message 1: only answers of the assistant can be in the loss; found a message by user",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows(case: str) -> None:
    row, message = WRONG[case]
    with pytest.raises(InputError) as caught:
        read(row)
    assert message in str(caught.value)


def test_history_of_alpaca_comes_first(encoder: Encoder) -> None:
    row = {"instruction": "And 3+3?", "output": "6.", "history": [["2+2?", "4."]]}
    chat = read(row)
    assert isinstance(chat, Chat)
    assert [message["content"] for message in chat.messages] == ["2+2?", "4.", "And 3+3?", "6."]
    (document,) = encoder.encode([Record(chat, "here", 0, Cursor())])
    assert in_loss(encoder.tokenizer, document) == ["4.<|im_end|>", "6.<|im_end|>"]
    for wrong in ("2+2?", [["2+2?"]], [[1, 2]]):
        with pytest.raises(InputError, match=r"wrong type of history; .*expected a list of \[question, answer\]"):
            read({**row, "history": wrong})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASK], "completion": [ANSWER], "system": "Add."},
        {"instruction": "2+2?", "output": "4.", "tools": json.dumps(TOOLS), "system": "Add."},
    ],
)
def test_a_table_gives_what_json_gives(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    one, other = (
        [record.content for record in source_of(str(tmp_path / f"rows.{kind}"), "text").read(Cursor())]
        for kind in ("jsonl", "parquet")
    )
    assert one == other
    assert isinstance(one[0], Chat)
    assert one[0].messages[0] == {"role": "system", "content": "Add."}
