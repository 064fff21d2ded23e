"""The messages of a conversation: their roles under all names, and which answers the loss leaves out."""

from collections.abc import Mapping
from typing import Any

from upcycle.errors import InputError
from upcycle.text.records import Chat

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles as chat templates know them."""

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "function": "tool",
    "observation": "tool",
    "tool": "tool",
    "user": "user",
    "assistant": "assistant",
}
"""What `from` may say -> role."""

CHOICES = ("train", "weight")
"""Fields of a message that say whether its answer is in the loss; templates do not see them."""


def as_messages(value: object, where: str) -> list[dict[str, Any]]:
    """Return messages with `role` and `content`, whatever they called it; raise InputError naming the wrong one."""
    if not isinstance(value, list) or not value:
        found = kind_of(value) if value != [] else "none"
        raise InputError("wrong messages", where=where, found=found, expected="a list of at least one")
    return [_message(message, f"{where}: message {number}") for number, message in enumerate(value, 1)]


def conversation(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, where: str) -> Chat:
    """Return a conversation; raise InputError when nobody answers in it, or a choice of answers cannot be followed."""
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError("nobody answers in this conversation", where=where, expected="a message by the assistant")
    for number, message in enumerate(messages, 1):
        _check_choice(message, f"{where}: message {number}")
    skipped = frozenset(number for number, message in enumerate(messages) if _is_skipped(message))
    plain = [{name: item for name, item in message.items() if name not in CHOICES} for message in messages]
    return Chat(plain, tools, skipped)


def string_of(row: Mapping[str, object], name: str, where: str) -> str:
    """Return the text in a field; raise InputError when it is none, or none that can be written as UTF-8."""
    value = row.get(name)
    if not isinstance(value, str):
        raise InputError(f"wrong type of {name}", where=where, found=kind_of(value), expected="a text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may write "\\ud800" alone, which no tokenizer takes
        raise InputError(f"{name} holds half of a surrogate pair", where=where) from None
    return value


def kind_of(value: object) -> str:
    """Return what JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _message(value: object, where: str) -> dict[str, Any]:
    """A message without the fields that are null; columns of a table have all fields in all rows."""
    if not isinstance(value, dict):
        raise InputError("wrong message", where=where, found=kind_of(value), expected="an object")
    message = {name: item for name, item in value.items() if item is not None}
    if "from" in message and "role" not in message:
        message = _renamed(message, where)
    if message.get("role") not in ROLES:
        raise InputError("unknown role", where=where, found=repr(message.get("role")), expected=", ".join(ROLES))
    if "content" in message or not message.get("tool_calls"):  # a call of a tool may stand alone
        string_of(message, "content", where)
    return message


def _renamed(message: dict[str, Any], where: str) -> dict[str, Any]:
    speaker = message.pop("from")
    if speaker not in SHAREGPT_ROLES:
        expected = ", ".join(SHAREGPT_ROLES)
        raise InputError("unknown role", where=where, found=f"from {speaker!r}", expected=expected)
    content = {"content": string_of(message, "value", where)}
    return {"role": SHAREGPT_ROLES[speaker], **content, **{k: v for k, v in message.items() if k != "value"}}


def _check_choice(message: Mapping[str, Any], where: str) -> None:
    train, weight = message.get("train", False), message.get("weight", 0)
    if not isinstance(train, bool):
        raise InputError("wrong type of train", where=where, found=kind_of(train), expected="true or false")
    if weight not in (0, 1) or isinstance(weight, str):
        raise InputError("wrong weight", where=where, found=repr(weight), expected="0 or 1")
    if (train or weight) and message["role"] != "assistant":
        raise InputError(
            "only answers of the assistant can be in the loss", where=where, found=f"a message by {message['role']}"
        )


def _is_skipped(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and (message.get("train") is False or message.get("weight") == 0)
