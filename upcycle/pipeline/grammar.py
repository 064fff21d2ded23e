"""What a recipe may say: its commands and their options, read off the dataclasses of `upcycle.requests`."""

from dataclasses import MISSING
from typing import Any

from upcycle import requests
from upcycle.errors import RequestError
from upcycle.option import Option, options_of
from upcycle.pipeline.document import Value, wrong_type

REQUESTS: dict[str, type[Any]] = {
    "plan": requests.Plan,
    "convert": requests.Convert,
    "verify": requests.Verify,
    "attach": requests.Attach,
    "train": requests.Train,
    "merge": requests.Merge,
    "plot": requests.Plot,
    "generate": requests.Generate,
    "push": requests.Push,
}
"""Command -> its request. A new command is one line here and one in `upcycle.pipeline.run`."""

CHAINED = ("model", "dense", "moe", "adapter", "metrics")
"""Options that a step may leave out: the steps before it have them."""

_ACCEPTED: dict[type, tuple[type, ...]] = {int: (int,), float: (float, int), bool: (bool,), str: (str,)}


def command_options(command: str) -> dict[str, Option]:
    """Return the options of `command` by name, in the order of its request's fields."""
    return options_of(REQUESTS[command])


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
    if type(value.data) not in _ACCEPTED[option.kind]:  # exact: True is an int to isinstance
        plain = option.kind is str and isinstance(value.data, bool | int | float)
        raise wrong_type(what, value, option.words_of_one, "put it in quotes" if plain else None)
    if option.choices and value.data not in option.choices:
        what = f"{what} is none of its choices"
        raise RequestError(what, where=value.where, found=value.described(), expected=option.words_of_one)
    try:
        return option.kind(value.data)
    except OverflowError:
        raise wrong_type(what, value, "a number that fits in 64 bits") from None


def command_of(request: Any) -> str:
    """Return the command whose request this is."""
    return next(command for command, kind in REQUESTS.items() if kind is type(request))
