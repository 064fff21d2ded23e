"""Writes the model card: a README.md whose marked block is upcycle's, and whose every other byte is its owner's."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader, Template

from upcycle.card.facts import Facts
from upcycle.card.markdown import FILTERS, written
from upcycle.card.metadata import as_yaml, metadata, read, with_metadata
from upcycle.card.readers import readers
from upcycle.card.values import items, real, whole
from upcycle.checkpoint.adapter import EXPERTS, LORA
from upcycle.checkpoint.lineage import origin
from upcycle.checkpoint.place import CARD_FILE
from upcycle.errors import InputError

BEGIN, END = "<!-- upcycle:begin -->", "<!-- upcycle:end -->"

_NOTE = "<!-- `upcycle push` writes anew what is between these two comments, and keeps what is outside of them. -->"
_REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_LINK = re.compile(r"\]\(https://huggingface\.co/([\w./-]{1,200})\)", re.ASCII)
_LINE_BREAK = re.compile(r"\r\n|\n|\r")


def card(facts: Facts, repo_id: str, before: str | None = None, recipe: Mapping[str, Any] | None = None) -> str:
    """Return the README.md of `repo_id`; `before` is the card that is there already, its line breaks as they are.

    `recipe` makes the output again: its `text`, what it `start`s with, and the `name` of what DENSE or ADAPTER is.
    The marked block is replaced, or added at the end. The metadata stays as it is but for the keys that it lacks, which
    are added: one that its owner removed comes back. Raises InputError for markers or metadata that leave it open what
    is whose, and where the metadata of a card with a marked block is about another model.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise InputError("is no name of a repository", found=repr(repo_id)[:120], expected="org/name")
    block = _block(facts, repo_id, recipe)
    if before is None or not before.strip("\ufeff \t\r\n"):
        return f"---\n{as_yaml(metadata(facts))}\n---\n\n# {repo_id.rpartition('/')[2]}\n\n{block}\n"
    line_break = (_LINE_BREAK.findall(before) or ["\n"])[0]
    block = block.replace("\n", line_break)
    marked = _marked(before)
    dropped = set(_LINK.findall(before[marked])) - set(_LINK.findall(block)) if marked else None
    told = with_metadata(before, facts, line_break, dropped)
    marked = _marked(told)
    if marked:
        return told[: marked.start] + block + told[marked.stop :]
    breaks = len(_LINE_BREAK.findall(told[len(told.rstrip("\r\n")) :]))
    return f"{told}{line_break * (2 - min(2, breaks))}{block}{line_break}"


def outside(card_text: str) -> str:
    """Return what of a card is its owner's: all but the marked block. Raises InputError for markers as `card` does."""
    marked = _marked(card_text)
    return card_text[: marked.start] + card_text[marked.stop :] if marked else card_text


def missing(card_text: str) -> list[str]:
    """Return the keys of the metadata that others ask for first and that this card lacks."""
    return [name for name in ("license",) if not read(card_text).get(name)]


def _block(facts: Facts, repo_id: str, recipe: Mapping[str, Any] | None) -> str:
    """Return the marked block: the template filled in, with one blank line where it has left several."""
    known = {"facts": facts, "target": readers(facts.config), "recipe": recipe}
    filled = _template().render(repo=repo_id, name=repo_id.rpartition("/")[2], **known)
    text = re.sub(r"\n{3,}", "\n\n", filled.strip())
    return f"{BEGIN}\n{_NOTE}\n\n{text}\n\n{END}"


@cache
def _template() -> Template:
    """Return the template, in which a value is escaped unless a filter has made markdown of it."""
    environment = Environment(
        loader=PackageLoader("upcycle.card", "."), autoescape=True, finalize=written, undefined=ChainableUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {"EXPERTS": EXPERTS, "LORA": LORA}
    environment.filters |= {each.__name__: each for each in (*FILTERS, items, origin, real, whole)}
    return environment.get_template("card.md.j2")


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
