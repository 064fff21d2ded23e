"""How a request's fields describe themselves: one description for the command line, recipes and their schema.

A request is a frozen dataclass of `upcycle.requests`; its fields are made by `option` and `argument`, and read back by
`options_of` as `Option`s.
"""

import types
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


def wrong_kind(request: Any) -> Option | None:
    """Return the first option of a request whose value is of another kind, which only Python programs can give."""
    for option in options_of(type(request)).values():
        value = getattr(request, option.name)
        values = value if option.many and isinstance(value, tuple) else (value,)
        accepted = (int, float) if option.kind is float else option.kind
        good = all(isinstance(one, accepted) and (option.kind is bool or type(one) is not bool) for one in values)
        if not (good or (value is None and option.nullable)):
            return option
    return None


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
