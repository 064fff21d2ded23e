"""The model card: a README.md whose marked block is upcycle's, and whose every other byte is its owner's."""

import re

from upcycle.errors import InputError
from upcycle.ship.card.facts import Facts
from upcycle.ship.card.metadata import FRONT, as_yaml, metadata, parsed
from upcycle.ship.card.text import text
from upcycle.ship.hub import CARD_FILE

BEGIN, END = "<!-- upcycle:begin -->", "<!-- upcycle:end -->"

_NOTE = "<!-- `upcycle push` writes anew what is between these two comments, and keeps what is outside of them. -->"
_REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_LINE_BREAK = re.compile(r"\r\n|\n|\r")


def card(facts: Facts, repo_id: str, before: str | None = None) -> str:
    """Return the README.md of `repo_id`; `before` is the card that is there already, its line breaks as they are.

    Of a card with a marked block only the block is replaced. One without gets the block at its end, and the metadata
    that its own lacks. Raises InputError for markers or metadata that leave it open what is whose.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise InputError("is no name of a repository", found=repr(repo_id)[:120], expected="org/name")
    block = f"{BEGIN}\n{_NOTE}\n\n{text(facts, repo_id)}\n\n{END}"
    if before is None or not before.strip("\ufeff \t\r\n"):
        return f"---\n{as_yaml(metadata(facts))}\n---\n\n# {repo_id.rpartition('/')[2]}\n\n{block}\n"
    found = _LINE_BREAK.search(before)
    line_break = found[0] if found else "\n"
    block = block.replace("\n", line_break)
    marked = _marked(before)
    if marked:
        return before[: marked.start] + block + before[marked.stop :]
    told = _with_metadata(before, facts, line_break)
    gap = line_break * (2 - min(2, _trailing_breaks(told)))
    return f"{told}{gap}{block}{line_break}"


def _marked(before: str) -> slice | None:
    """Return where the block is; None where there is none."""
    begins, ends = before.count(BEGIN), before.count(END)
    if not begins and not ends:
        return None
    start, stop = before.find(BEGIN), before.find(END)
    if (begins, ends) != (1, 1) or stop < start:
        raise InputError(
            "does not say what of it is upcycle's", where=CARD_FILE,
            found=f"{begins} of {BEGIN} and {ends} of {END}" + (", the wrong way round" if begins == ends == 1 else ""),
            expected="one of each, in this order",
            hint="remove all of these comments, and what was between them; the block is then added at the end",
        )  # fmt: skip
    return slice(start, stop + len(END))


def _with_metadata(before: str, facts: Facts, line_break: str) -> str:
    """Return `before` with metadata for the keys that its own lacks, at their end; what is there stays as it is."""
    wanted = metadata(facts)
    front = FRONT.match(before)
    if not front:
        mark, rest = ("\ufeff", before[1:]) if before.startswith("\ufeff") else ("", before)
        head = line_break.join(["---", *as_yaml(wanted).split("\n"), "---", "", ""])
        return f"{mark}{head}{rest}"
    try:
        own = parsed(front[2])
        added = {name: value for name, value in _without_contradiction(wanted, own).items() if name not in own}
        lines = line_break.join(as_yaml(added).split("\n"))
        if not lines:
            return before
        body = f"{front[2]}{line_break if front[2].strip() else ''}{lines}"
        whole = parsed(body)
    except InputError as error:
        raise InputError(
            str(error), where=CARD_FILE, hint="mend what is between the two lines `---` at its head"
        ) from None
    if whole.keys() != own.keys() | added.keys():
        raise InputError(
            "has metadata to which nothing can be added", where=CARD_FILE, expected="a line `key: value` for each",
            hint="mend what is between the two lines `---` at its head",
        )  # fmt: skip
    return f"{front[1]}{body}{before[front.end(2) :]}"


def _without_contradiction(wanted: dict[str, object], own: dict[str, object]) -> dict[str, object]:
    """Leave out what belongs to a key that the card answers in its own way: another base's relation, another license's
    name.
    """
    together = (("base_model", "base_model_relation"), ("license", "license_name", "license_link"))
    dropped = {name for first, *others in together if first in own for name in others}
    return {name: value for name, value in wanted.items() if name not in dropped}


def _trailing_breaks(told: str) -> int:
    return len(_LINE_BREAK.findall(told[len(told.rstrip("\r\n")) :]))
