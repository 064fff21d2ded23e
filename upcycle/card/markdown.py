"""Markdown of what comes out of files: shown as the text that it is, whatever it holds."""

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

MAX_TEXT = 200
"""Characters of a text out of a file; names are shorter."""

_SAFE = set(" -.,/%+=():")
_INSIDE_WORD = re.compile(r"(?<=[^\W_])_(?=[^\W_])")
_LINK = re.compile(r":(?=/)|(?<=www)\.", re.IGNORECASE)


def cleaned(value: object, limit: int = MAX_TEXT) -> str:
    """Return `value` as one line of printable text: no control characters, none that turn the direction of writing."""
    text = "".join(character if character.isprintable() else " " for character in str(value)[: 4 * limit])
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def plain(value: object, limit: int = MAX_TEXT) -> str:
    """Return `value` as text of a paragraph or a cell: what markdown or HTML could take for its own is an entity.

    A name that looks like an address stays text, and nothing of it can be one of the card's markers.
    """
    text = cleaned(value, limit)
    inside = {match.start() for match in _INSIDE_WORD.finditer(text)}
    linking = {match.start() for match in _LINK.finditer(text)}
    return "".join(
        character
        if at in inside or (at not in linking and (character.isalnum() or character in _SAFE))
        else f"&#{ord(character)};"
        for at, character in enumerate(text)
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str | None]]) -> str:
    """Return a table of cells that are markdown already; a row without its last cell is left out."""
    lines = [head, ["---"] * len(head), *(row for row in rows if row[-1] is not None)]
    return "\n".join(f"| {' | '.join(cell or '' for cell in line)} |" for line in lines)


def fenced(language: str, text: str) -> str:
    """Return a block of code; its text must be ours, or have no line that begins with a backtick."""
    return f"```{language}\n{text.rstrip()}\n```"


def picture(path: str) -> str:
    """Return a picture of the repository, called by its name."""
    name = path.rpartition("/")[2].rpartition(".")[0]
    return f"![{plain(name.replace('_', ' ').replace('-', ' '))}]({quote(path)})"


def joined(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
