"""Checks that every request makes of its own options, and the record of those that decide its result."""

from dataclasses import asdict
from typing import Any

from upcycle.errors import RequestError
from upcycle.option import accepts, nearest, options_of


def check_kinds(request: Any) -> None:
    """Raise RequestError for a value that its option cannot have, which only Python programs can give."""
    for option in options_of(type(request)).values():
        value = getattr(request, option.name)
        if not accepts(option, value):
            what = "is none of its choices" if option.choices and isinstance(value, str) else "is of the wrong kind"
            raise RequestError(
                f"{option.name} {what}", found=repr(value)[:60], expected=option.words, option=option.name,
                hint=nearest(value, option.choices) if isinstance(value, str) else None,
            )  # fmt: skip


def require(good: bool, name: str, found: object, expected: str) -> None:
    """Raise RequestError, naming the option `name`, unless its value is `good`."""
    if not good:
        raise RequestError(
            f"{name} is out of range", found=found, expected=expected, hint=f"set it with {_flag(name)}", option=name
        )


def require_beside(good: bool, name: str, found: object, other: str) -> None:
    """Raise RequestError unless the option `name` goes with `other`, which says what it needs or excludes."""
    if not good:
        raise RequestError(
            f"{_flag(name)} does not go with the other options", found=found, expected=other, option=name
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def recorded(request: Any) -> dict[str, Any]:
    """Return the options of `request` that decide its result, as JSON data: for receipts and for resuming."""
    values = asdict(request)
    options = [option for option in options_of(type(request)).values() if option.recorded]
    names = [option.name for option in options if not (option.added and values[option.name] == option.default)]
    return {name: list(values[name]) if isinstance(values[name], tuple) else values[name] for name in names}
