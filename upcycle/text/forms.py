"""The forms that a row of data may have, one line of `FORMS` each, and how a row of each is read and checked.

A form is told by the names of its fields; the first that fits is taken. `docs/data.md` shows an example of each.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from upcycle.errors import InputError
from upcycle.text.messages import as_messages, conversation, kind_of, string_of
from upcycle.text.records import Chat, Pair, Text

Row: TypeAlias = dict[str, Any]
Content: TypeAlias = Text | Pair | Chat


@dataclass(frozen=True, slots=True)
class Form:
    """One form of rows."""

    needs: tuple[str, ...]
    """Fields by which it is told."""
    takes: tuple[str, ...]
    """Fields that are read too where a row has them."""
    read: Callable[[Row, str], Content]
    """Takes a row and its place, which errors name."""


def content_of(row: object, where: str, text_field: str) -> Content:
    """Return what a row holds, read by the first form that fits; raise InputError when none does or it is wrong."""
    if not isinstance(row, dict):
        raise InputError("wrong JSON document", where=where, found=kind_of(row), expected="an object")
    row = {name: value for name, value in row.items() if value is not None} or row  # tables fill up with nulls
    if text_field in row:
        return Text(string_of(row, text_field, where))
    form = next((form for form in FORMS if set(form.needs) <= row.keys()), None)
    if form is None:
        raise missing_fields(row, where, text_field)
    return form.read(row, where)


def columns_of(names: Collection[str], where: str, text_field: str) -> list[str]:
    """Return which columns of a table are read; raise InputError when no form fits its columns."""
    if text_field in names:
        return [text_field]
    for form in FORMS:
        if set(form.needs) <= set(names):
            return [*form.needs, *(name for name in form.takes if name in names)]
    raise missing_fields(names, where, text_field)


def missing_fields(fields: Collection[str], where: str, text_field: str) -> InputError:
    """Return the error for a row or a table that has the fields of no form."""
    forms = [text_field, *(" and ".join(form.needs) for form in FORMS)]
    return InputError(
        "no text in it",
        where=where,
        found="the fields " + ", ".join(fields) if fields else "no field",
        expected=", or ".join(forms),
        hint="--text-field names the field that holds the text",
    )


def without_nulls(row: Row) -> Row:
    """Return a row of a table without the null fields of the objects in it, at any depth.

    A column of objects has one set of fields for all rows, so that a tool has the parameters of all other tools, null.
    """
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _messages(row: Row, where: str) -> Chat:
    """Messages with `role` and `content`."""
    return _chat(row, as_messages(row["messages"], where), where)


def _conversations(row: Row, where: str) -> Chat:
    """ShareGPT's messages with `from` and `value`, or messages with `role` and `content` under that name."""
    return _chat(row, as_messages(row["conversations"], where), where)


def _prompt_completion(row: Row, where: str) -> Content:
    """Two texts, or two lists of messages of which the answers in the second are in the loss."""
    if not isinstance(row["prompt"], list):
        return Pair(string_of(row, "prompt", where), string_of(row, "completion", where))
    prompt = as_messages(row["prompt"], f"{where}: prompt")
    completion = as_messages(row["completion"], f"{where}: completion")
    shown = [{**message, "train": False} if message["role"] == "assistant" else message for message in prompt]
    return _chat(row, [*shown, *completion], where)


def _instruction(row: Row, where: str) -> Chat:
    """Alpaca's instruction with its input as the question, the output as the answer, behind the turns of history."""
    names = [name for name in ("instruction", "input") if row.get(name)]
    question = "\n\n".join(string_of(row, name, where) for name in names)
    turns = [*_history(row, where), (question, string_of(row, "output", where))]
    named = [(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    return _chat(row, [{"role": role, "content": text} for role, text in named], where)


def _history(row: Row, where: str) -> list[tuple[str, str]]:
    """Earlier questions and answers, `[["2+2?", "4."]]`; the answers are in the loss, too."""
    history = row.get("history") or []
    pairs = isinstance(history, list) and all(
        isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
        for turn in history
    )
    if not pairs:
        raise InputError(
            "wrong type of history", where=where, found=kind_of(history), expected="a list of [question, answer]"
        )
    return [(turn[0], turn[1]) for turn in history]


def _chat(row: Row, messages: list[Row], where: str) -> Chat:
    return conversation(_with_system(row, messages, where), _tools(row, where), where)


def _with_system(row: Row, messages: list[Row], where: str) -> list[Row]:
    """The messages, behind the system message in a field beside them, unless they begin with one."""
    if not row.get("system") or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": string_of(row, "system", where)}, *messages]


def _tools(row: Row, where: str) -> list[dict[str, Any]] | None:
    """The tools beside a conversation: a list of JSON schemas, or the text of one; None where there are none."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError):
            raise InputError("tools is not valid JSON", where=where, expected="a list of JSON schemas") from None
    if not tools:
        return None
    if not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise InputError("wrong type of tools", where=where, found=kind_of(tools), expected="a list of JSON schemas")
    return tools


FORMS: tuple[Form, ...] = (
    Form(("messages",), ("tools", "system"), _messages),
    Form(("conversations",), ("tools", "system"), _conversations),
    Form(("prompt", "completion"), ("tools", "system"), _prompt_completion),
    Form(("instruction", "output"), ("input", "history", "tools", "system"), _instruction),
)
"""Every form but the plain text, whose field `--text-field` names; text is looked for first."""
