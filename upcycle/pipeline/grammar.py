"""Which options a step of a recipe may have, and which values; read off the requests of the commands."""

from dataclasses import MISSING
from typing import Any

from upcycle.errors import RequestError
from upcycle.option import Option, accepts_one, nearest, options_of
from upcycle.pipeline.document import Value, wrong_type
from upcycle.requests.commands import COMMANDS

CHAINED = {option for command in COMMANDS.values() for option in command.gives}
"""Options that a step may leave out: the steps before it give them."""


def command_options(command: str) -> dict[str, Option]:
    """Return the options of `command` by name, in the order of its request's fields."""
    return options_of(COMMANDS[command].request)


def is_required(option: Option) -> bool:
    """Whether a step must say it, whatever was before."""
    return option.default is MISSING and option.name not in CHAINED


def read_option(option: Option, value: Value, command: str) -> Any:
    """Return `value` as the field holds it; raise RequestError for another type or an unknown choice."""
    what = f"{command}.{option.name}"
    if value.data is None and option.nullable:
        return None
    if not option.many:
        return _read_one(option, value, what)
    if option.joined and not isinstance(value.data, tuple):
        return (_read_one(option, value, what),)
    if not isinstance(value.data, tuple):
        raise wrong_type(what, value, option.words)
    return tuple(_read_one(option, item, f"an item of {what}") for item in value.data)


def _read_one(option: Option, value: Value, what: str) -> Any:
    if not accepts_one(option, value.data):
        raise _unfit(option, value, what)
    try:
        return option.kind(value.data)
    except OverflowError:
        raise wrong_type(what, value, "a number that fits in 64 bits") from None


def _unfit(option: Option, value: Value, what: str) -> RequestError:
    """Return the error for a value that the option cannot have."""
    if isinstance(value.data, str) and option.choices:
        return RequestError(
            f"{what} is none of its choices", where=value.where, found=value.described(),
            expected=option.words_of_one, hint=nearest(value.data, option.choices),
        )  # fmt: skip
    plain = option.kind is str and isinstance(value.data, bool | int | float)
    return wrong_type(what, value, option.words_of_one, "put it in quotes" if plain else None)
