"""Reads a recipe file: a strict subset of YAML, in which every value knows its line.

Refused, since in a recipe it is a slip or an attack: a key given twice, tags such as `!!python/object`, anchors on
lists and mappings (their aliases could multiply without end), a second document, deep nesting and large files.
Single values are read as YAML 1.2 has them: `1e-4` and `1E5` are numbers, `no` and `12:30` are text.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from upcycle.errors import RequestError
from upcycle.option import nearest

MAX_BYTES = 1_000_000
"""A recipe is a page; a file this large is something else."""
MAX_DEPTH = 8
"""Lists and mappings inside one another; a recipe needs 5."""

_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9])*)$")
_FLOAT = re.compile(r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$")
_BOOLEAN = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_NOTHING = re.compile(r"(?:~|null|Null|NULL|)$")
_SCALARS: dict[str, Callable[[str], Any]] = {
    f"{_TAG}str": str,
    f"{_TAG}int": int,
    f"{_TAG}float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
    f"{_TAG}bool": lambda text: {"true": True, "false": False}[text.lower()],
    f"{_TAG}null": lambda _: None,
}
_PLAIN_TAGS = {None, *_SCALARS, f"{_TAG}seq", f"{_TAG}map"}


@dataclass(frozen=True, slots=True)
class Value:
    """Something that a recipe says, and where: the line of the key it stands under, or else its own."""

    data: "bool | int | float | str | tuple[Value, ...] | Mapping[str, Value] | None"
    where: str  # FILE:LINE

    def described(self) -> str:
        """Return what this is, for a message: `the text 'eight'`."""
        if isinstance(self.data, Mapping):
            return "a mapping"
        if isinstance(self.data, tuple):
            return "a list"
        if isinstance(self.data, str):
            return f"the text {_shortened(self.data)!r}"
        if self.data is None:
            return "nothing"
        return str(self.data).lower() if isinstance(self.data, bool) else f"the number {_shortened(str(self.data))}"

    def entries(self, what: str, hint: str | None = None) -> Mapping[str, "Value"]:
        """Return the entries of a mapping; raise RequestError if this is none."""
        if isinstance(self.data, Mapping):
            return self.data
        raise wrong_type(what, self, "a mapping", hint)


def wrong_type(what: str, value: Value, expected: str, hint: str | None = None) -> RequestError:
    """Return the error for a value of another type than `what` has."""
    return RequestError(
        f"{what} has the wrong type", where=value.where, found=value.described(), expected=expected, hint=hint
    )


def unknown(what: str, name: str, known: list[str], where: str) -> RequestError:
    """Return the error for a name that is not one of `known`."""
    return RequestError(
        f"unknown {what}",
        where=where,
        found=repr(_shortened(name)),
        expected=f"one of {', '.join(known)}",
        hint=nearest(name, known),
    )


def read_document(path: Path) -> Value:
    """Return what the recipe file `path` says; raise RequestError, with the line, for all that a recipe cannot hold."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"cannot be read ({error.strerror})", where=path) from None
    if len(data) > MAX_BYTES:
        raise RequestError("is too large for a recipe", where=path, expected=f"{MAX_BYTES:,} bytes or less")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RequestError("is not UTF-8 text", where=f"{path}:{line}") from None
    return parse(text, lambda line: f"{path}:{line}")


def parse(text: str, where: Callable[[int], str]) -> Value:
    """Return what `text` says; `where` names the place of a line, counted from 1. Raises RequestError."""
    try:
        loader = _Loader(text, where)
        node = loader.only_document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        tab = "\\t" in (error.problem or "")
        raise RequestError(
            f"is not sound YAML ({error.problem})",
            where=where(mark.line + 1 if mark else 1),
            hint="indent with spaces, not tabs" if tab else None,
        ) from None
    except yaml.reader.ReaderError as error:
        place = where(text.count("\n", 0, error.position) + 1)
        raise RequestError("holds a control character", where=place, found=f"#x{error.character:02x}") from None
    return _value(node, where)


class _Loader(yaml.SafeLoader):
    """Composes nodes and constructs nothing; refuses what a recipe cannot hold as soon as it comes by."""

    def __init__(self, text: str, where: Callable[[int], str]) -> None:
        super().__init__(text)
        self._where = where
        self._depth = 0

    def only_document(self) -> yaml.Node:
        """Return the root of the one document that there must be."""
        self.get_event()
        if self.check_event(yaml.StreamEndEvent):
            raise RequestError("is empty", where=self._where(1), expected="a recipe: name, description and steps")
        node = self.compose_document()
        assert node is not None  # noqa: S101  there was an event, so there is a node
        if not self.check_event(yaml.StreamEndEvent):
            raise self._refusal("holds a second document", "one recipe in a file")
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As the base class, but for the refusals."""
        if self.check_event(yaml.AliasEvent):
            return super().compose_node(parent, index)
        event = self.peek_event()
        if event.tag not in _PLAIN_TAGS:
            raise self._refusal(f"has the tag {_shortened(event.tag)}", "values without tags")
        if event.anchor in self.anchors:
            raise self._refusal(f"has the anchor &{event.anchor} a second time", "another name")
        if isinstance(event, yaml.ScalarEvent):
            return super().compose_node(parent, index)
        if event.anchor is not None:
            raise self._refusal(f"has the anchor &{event.anchor} on a list or mapping", "anchors on single values only")
        if self._depth == MAX_DEPTH:
            raise self._refusal("is nested too deeply", f"{MAX_DEPTH} levels or less")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refusal(self, what: str, expected: str) -> RequestError:
        return RequestError(what, where=self._where(self.peek_event().start_mark.line + 1), expected=expected)


_Loader.yaml_implicit_resolvers = {}  # those of YAML 1.1 read `no` as false and `12:30` as 750
for _tag, _pattern, _first in (
    ("null", _NOTHING, ["~", "n", "N", ""]),
    ("bool", _BOOLEAN, list("tTfF")),
    ("int", _INTEGER, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_TAG + _tag, _pattern, _first)


def _value(node: yaml.Node, where: Callable[[int], str], key_line: int | None = None) -> Value:
    line = key_line or node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        return Value(_entries(node, where), where(line))
    if isinstance(node, yaml.SequenceNode):
        return Value(tuple(_value(item, where) for item in node.value), where(line))
    try:
        return Value(_SCALARS[node.tag](node.value), where(line))
    except (KeyError, ValueError):  # a tag that does not fit, or more digits than Python reads
        raise RequestError(
            "cannot be read", where=where(line), found=repr(_shortened(node.value)), expected=node.tag.split(":")[-1]
        ) from None


def _entries(node: yaml.MappingNode, where: Callable[[int], str]) -> dict[str, Value]:
    entries: dict[str, Value] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise RequestError("has a list or mapping as a key", where=where(line), expected="a name")
        if key.value in entries:
            again = f"the key {_shortened(key.value)!r} a second time"
            raise RequestError(f"has {again}", where=where(line), hint=f"the first is at {entries[key.value].where}")
        entries[key.value] = _value(value, where, line)
    return entries


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
