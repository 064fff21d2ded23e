"""Writes values as markdown that shows them as the text that they are, whatever a file holds: the template's filters.

A filter gives None for a value of the wrong kind; the template then leaves out the sentence or row.
"""

import re
from collections.abc import Iterable
from math import exp

from markupsafe import Markup

from upcycle.card.values import real, whole

_SYNTAX = re.compile(r"[^\w .,/%+=():-]|(?<![^\W_])_|_(?![^\W_])|:(?=/)|(?<=www)\.", re.IGNORECASE)
"""Matches what markdown or HTML could take for its own, or for an address; inside of a word `_` is harmless."""


def cleaned(value: object, limit: int = 200) -> str:
    """Return `value` as one line of printable text: no control characters, none that turn the direction of writing."""
    text = "".join(character if character.isprintable() else " " for character in str(value)[: 4 * limit])
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def plain(value: object, limit: int = 200) -> Markup:
    """Return `value` as text of a paragraph or a cell, every character of `_SYNTAX` as an entity.

    A name that looks like an address stays text, and nothing of it can be one of the card's markers.
    """
    return Markup(_SYNTAX.sub(lambda found: f"&#{ord(found[0])};", cleaned(value, limit)))


def written(value: object) -> Markup:
    """Return what the template writes for a value that no filter has made markdown of."""
    return value if isinstance(value, Markup) else plain(value) if isinstance(value, str | int | float) else Markup("")


def text(value: object, limit: int = 200) -> Markup | None:
    """Return a text as `plain` does."""
    return plain(value, limit) if isinstance(value, str) else None


def code(value: object, limit: int = 200) -> Markup:
    """Return a name for backticks, code or an address; ids of the Hub, commits and hashes stay as they are."""
    return Markup("".join(letter if letter.isalnum() or letter in "-_. @/" else "_" for letter in str(value)[:limit]))


def count(value: object, unit: str = "") -> Markup | None:
    """Return a whole number, such as `1,024 tokens`."""
    number = whole(value)
    return None if number is None else Markup(f"{number:,}{unit}")


def figure(value: object, form: str = "g", unit: str = "") -> Markup | None:
    """Return a number in a form of Python's, such as `.2e`."""
    number = real(value)
    return None if number is None else Markup(f"{number:{form}}{unit}")


def loss(value: object) -> Markup | None:
    """Return a loss in nats and its perplexity."""
    number = real(value)
    if number is None or abs(number) >= 100:
        return figure(number, ".4g")
    return Markup(f"{number:.4f} (perplexity {exp(number):.5g})")


def listed(values: Iterable[Markup | None], most: int = 1000) -> Markup:
    """Return what there is as `a, b and c`, after the first `most` how many more there are."""
    words = [value for value in values if value]
    rest = [Markup(f"{len(words) - most} more")] if len(words) > most else []
    *words, last = [*words[:most], *rest] or [Markup("")]
    return Markup(" and ").join([Markup(", ").join(words), last] if words else [last])


def flow(value: str) -> Markup:
    """Return a sentence on one line; where a line of it begins with , . : or ; no space is put before it."""
    return Markup(re.sub(r"\s*\n\s*([,.:;]?)", lambda found: found[1] or " ", value.strip()))


FILTERS = (plain, text, code, count, figure, loss, listed, flow)
