"""An option of a command: its name, kind, choices, default and help, read off the field of a request.

A request is a frozen dataclass of `upcycle.requests`; its fields are made by `option` and `argument`, and read back by
`options_of` as `Option`s.
"""

import types
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
"""Type of an option -> what a message calls it."""


@dataclass(frozen=True, slots=True)
class Option:
    """One field of a request."""

    name: str
    kind: type  # int, float, bool or str
    choices: tuple[str, ...]  # empty: any value of the kind
    many: bool  # a tuple of them
    nullable: bool
    default: Any  # dataclasses.MISSING: must be given
    help: str  # one line for people
    positional: bool = False  # an argument without a dash
    group: str = "Options"  # the heading under which `--help` lists it
    short: str | None = None  # a one-letter flag
    metavar: str | None = None  # what the value is called
    joined: bool = False  # several values are one word on the command line, 2,4,6,8; in a recipe one may stand alone
    recorded: bool = True  # False: says how the work is done, not what comes out; left out of the receipt
    added: bool = False  # came after receipts were written without it: recorded only where it is not the default

    @property
    def words_of_one(self) -> str:
        """What one value must be, for a message."""
        return f"one of {', '.join(self.choices)}" if self.choices else WORDS[self.kind]

    @property
    def words(self) -> str:
        """What is expected, for a message."""
        return f"a list, each {self.words_of_one}" if self.many else self.words_of_one


def option(default: Any, help: str, **metadata: Any) -> Any:
    """Return a dataclass field that is an option; `metadata` are further fields of `Option`."""
    return field(default=default, metadata={"help": help, **metadata})


def argument(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """Return a dataclass field that needs no dash, and must be given unless it has a default."""
    return field(default=default, metadata={"help": help, "positional": True, "group": "Arguments", **metadata})


def options_of(request: type[Any]) -> dict[str, Option]:
    """Return the options of a request class by name, in the order of its fields."""
    hints = get_type_hints(request)
    return {item.name: _option(item, hints[item.name]) for item in fields(request)}


def accepts(option: Option, value: object) -> bool:
    """Whether `value` is one that `option` can have: of its kind, one of its choices, None only where nothing is meant.

    Several values are a tuple. A whole number counts as a number, and true and false as no number.
    """
    if option.many:
        return isinstance(value, tuple) and all(accepts_one(option, one) for one in value)
    return (value is None and option.nullable) or accepts_one(option, value)


def accepts_one(option: Option, value: object) -> bool:
    """Whether `value` can be the option's value, or one of several."""
    kinds = (int, float) if option.kind is float else option.kind
    right = isinstance(value, kinds) and (option.kind is bool or not isinstance(value, bool))
    return right and (not option.choices or value in option.choices)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return `did you mean ...?` with the one of `known` that `word` is a slip for, or None where there is none."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]}?" if close else None


def _option(item: Field[Any], hint: Any) -> Option:
    nullable = get_origin(hint) in (Union, types.UnionType)
    if nullable:
        hint = next(part for part in get_args(hint) if part is not type(None))
    many = get_origin(hint) is tuple
    if many:
        hint = get_args(hint)[0]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = str if choices else hint
    return Option(item.name, kind, choices, many, nullable, item.default, **item.metadata)
