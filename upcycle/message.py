"""Shortens what a message quotes: a list to its first items, a value from outside to a few printable characters."""

from collections.abc import Iterable


def listed(items: Iterable[object], most: int = 4, *, between: str = ", ", cut: int = 120) -> str:
    """Return the first `most` items, each at most `cut` characters, and how many more there are: `1, 2 and 7 more`."""
    shown = [str(item)[:cut] for item in items]
    rest = len(shown) - most
    return between.join(shown[:most]) + (f"{between.rstrip(' ,')} and {rest} more" if rest > 0 else "")


def quoted(value: object, cut: int = 60) -> str:
    """Return a value of any kind as Python writes it, in ASCII, so that it can neither fill nor control a terminal."""
    return ascii(value)[:cut]
