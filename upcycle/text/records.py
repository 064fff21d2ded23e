"""What a source of text yields: a text, a prompt with its completion, or a conversation; checked, with its place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from upcycle.errors import InputError

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Text:
    """A document, or a piece of one: of a long file not more than a piece is in memory."""

    text: str
    starts: bool = True  # whether the document begins here ...
    ends: bool = True  # ... and whether it ends here


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and what follows it; the loss asks for the completion alone."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, as chat templates take it; the loss asks for the assistant's messages alone."""

    messages: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between two records, from which reading goes on without reading what came before."""

    file: int = 0  # number in the source
    offset: int = 0  # bytes (unpacked, of a .gz), or rows of a parquet file
    line: int = 0  # lines before it
    unit: int = 0  # records of the source before it
    inner: dict[str, Any] = field(default_factory=dict)  # what `datasets` wants to know, as JSON data


@dataclass(frozen=True, slots=True)
class Record:
    """One unit of a source: what is kept or held out as a whole."""

    content: Text | Pair | Chat
    where: str  # file:line, for errors
    unit: int  # number in the source
    after: Cursor

    @property
    def size(self) -> int:
        """Characters, about."""
        match self.content:
            case Text(text):
                return len(text)
            case Pair(prompt, completion):
                return len(prompt) + len(completion)
            case Chat(messages):
                return sum(len(message.get("content", "")) for message in messages)


class Source(Protocol):
    """Where records come from."""

    name: str
    files: list[list[str]]
    """Name and size of each file: what must not change between a checkpoint and going on from it."""

    def read(self, at: Cursor) -> Iterator[Record]:
        """Yield the records after a place."""
        ...


def content_of(row: object, where: str, text_field: str) -> Text | Pair | Chat:
    """Return what a row holds, a text before messages before a prompt; raise InputError when it is none of them."""
    if not isinstance(row, dict):
        raise InputError("wrong JSON document", where=where, found=_kind(row), expected="an object")
    row = {name: value for name, value in row.items() if value is not None} or row  # tables fill up with nulls
    if text_field in row:
        return Text(_string(row, text_field, where))
    if "messages" in row:
        return Chat(_messages(row["messages"], where))
    if {"prompt", "completion"} <= row.keys():
        return Pair(_string(row, "prompt", where), _string(row, "completion", where))
    raise missing_fields(row, where, text_field)


def missing_fields(fields: Mapping[str, object] | list[str], where: str, text_field: str) -> InputError:
    """Return the error of a row or a table without a field that could be trained on."""
    return InputError(
        "no text in it",
        where=where,
        found="the fields " + ", ".join(fields) if fields else "no field",
        expected=f"{text_field}, or messages, or prompt and completion",
        hint="--text-field names the field that holds the text",
    )


def _messages(value: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        found = _kind(value) if value != [] else "none"
        raise InputError("wrong messages", where=where, found=found, expected="a list of at least one")
    messages = [_message(message, f"{where}: message {number}") for number, message in enumerate(value, 1)]
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError("nobody answers in this conversation", where=where, expected="a message by the assistant")
    return messages


def _message(value: object, where: str) -> dict[str, Any]:
    """Return a message without the fields that are null; columns of a table have all fields in all rows."""
    if not isinstance(value, dict):
        raise InputError("wrong message", where=where, found=_kind(value), expected="an object")
    message = {name: item for name, item in value.items() if item is not None}
    if message.get("role") not in ROLES:
        raise InputError("unknown role", where=where, found=repr(message.get("role")), expected=", ".join(ROLES))
    if "content" in message or not message.get("tool_calls"):  # a call of a tool may stand alone
        _string(message, "content", where)
    return message


def _string(row: Mapping[str, object], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise InputError(f"wrong type of {name}", where=where, found=_kind(value), expected="a text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may write "\\ud800" alone, which no tokenizer takes
        raise InputError(f"{name} holds half of a surrogate pair", where=where) from None
    return value


def _kind(value: object) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
