"""The metadata of a card that is there: what it lacks is added, a place of a machine goes, the rest stays as it is.

Removing or adding a line is held against what YAML reads before and after: what cannot be done so is refused.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from upcycle.card.facts import Facts
from upcycle.card.metadata import FRONT, as_yaml, metadata, parsed
from upcycle.card.values import hub_id, texts
from upcycle.checkpoint.place import CARD_FILE
from upcycle.errors import InputError

_TOGETHER: dict[str, tuple[str, ...]] = {
    "base_model": ("base_model_relation", "license", "license_name", "license_link"),
    "library_name": ("base_model_relation",),
}
"""What says of which model a card is -> what was told with it, and is wrong when it is."""
_DEPENDENT = (("base_model", "base_model_relation"), ("license", "license_name", "license_link"))
"""A key, and those that are only added beside one of ours."""

_KEY = re.compile(r"([\"']?)([\w-]+)\1[ \t]*:(?=\s|\Z)")
_ITEM = re.compile(r"[ \t]*-[ \t]+([\"']?)(.*?)\1[ \t]*\s*")
_BASE_TAG = re.compile(r"base_model:(?:[a-z]+:)?(.*)", re.DOTALL)
_MEND = "mend what is between the two lines `---` at its head"


def with_metadata(before: str, facts: Facts, line_break: str, *, dropped: Collection[str] | None) -> str:
    """Return the card `before` with metadata for the keys that its own lacks, at their end.

    A base model that is a place of a machine, as peft writes it, is replaced. `dropped` are the models that the card's
    marked block cites and the new one does not; None where it has no block. Raises InputError for metadata that leaves
    it open what is whose, and where that of a card with a block is about another model than `facts`.
    """
    wanted = metadata(facts)
    front = FRONT.match(before)
    if not front:
        mark, rest = ("\ufeff", before[1:]) if before.startswith("\ufeff") else ("", before)
        head = line_break.join(["---", *as_yaml(wanted).split("\n"), "---", "", ""])
        return f"{mark}{head}{rest}"
    try:
        body = _added(_without_places(front[2], facts), wanted, line_break, dropped)
    except InputError as error:
        raise InputError(
            error.what, where=CARD_FILE, found=error.found, expected=error.expected, hint=error.hint or _MEND
        ) from None
    return f"{front[1]}{body}{before[front.end(2) :]}"


def _added(body: str, wanted: Mapping[str, Any], line_break: str, dropped: Collection[str] | None) -> str:
    """Return metadata with what it lacks; what belongs to a key that it answers in its own way is left out."""
    own = parsed(body)
    if dropped is not None:
        _check_same(own, wanted, dropped)
    answered = [others for first, *others in _DEPENDENT if first in own and own[first] != wanted.get(first)]
    theirs = {*own, *(name for others in answered for name in others)}
    added = {name: value for name, value in wanted.items() if name not in theirs}
    lines = line_break.join(as_yaml(added).split("\n"))
    if not lines:
        return body
    body = f"{body}{line_break if body.strip() else ''}{lines}"
    if parsed(body).keys() != own.keys() | added.keys():
        raise InputError("has metadata to which nothing can be added", expected="a line `key: value` for each")
    return body


def _check_same(own: Mapping[str, Any], wanted: Mapping[str, Any], dropped: Collection[str]) -> None:
    """Raise InputError when the metadata is about another model; of other keys, an owner's answer is an answer."""

    def is_wrong(name: str) -> bool:
        said = texts(own.get(name))
        return wanted[name] not in said if name in wanted else not set(said).isdisjoint(dropped)

    wrong = [name for name in _TOGETHER if name in own and is_wrong(name)]
    if not wrong:
        return
    beside = dict.fromkeys(name for first in wrong for name in _TOGETHER[first])
    wrong += [name for name in beside if name in own and own[name] != wanted.get(name)]
    raise InputError(
        "has metadata of another model, from an earlier push",
        found=", ".join(f"{name}: {' and '.join(texts(own[name]))}" for name in wrong)[:400],
        expected=", ".join(f"{name}: {wanted.get(name, 'none')}" for name in wrong),
        hint=f"remove {'the line' if len(wrong) == 1 else 'these lines'}, or the card; it is then written anew",
    )


def _without_places(body: str, facts: Facts) -> str:
    """Return metadata without a base model that is no Hub id, which the Hub refuses, and without tags that name one.

    What peft wrote, the name in the adapter's config, goes as well where that is not what the model is called.
    """

    def is_place(model: str) -> bool:
        written = model == facts.config.get("base_model_name_or_path") and model != facts.base
        return written or hub_id(model, "any") is None

    own = parsed(body)
    bases, tags = texts(own.get("base_model")), texts(own.get("tags"))
    bad = {tag for tag in tags if (match := _BASE_TAG.fullmatch(tag)) and is_place(match[1])}
    gone = {"base_model"} if any(map(is_place, bases)) else set()
    gone |= {"tags"} if bad and bad == set(tags) else set()
    if not gone and not bad:
        return body
    expected = {name: value for name, value in own.items() if name not in gone}
    if bad and "tags" in expected:
        expected["tags"] = [tag for tag in own["tags"] if tag not in bad]
    body = "".join(_kept(body, gone, bad)).rstrip("\r\n")
    if parsed(body) != expected:
        raise InputError(
            "names its base model by a place of a machine, which the Hub refuses",
            found=", ".join([*bases, *sorted(bad)])[:200], expected="a Hub id", hint="remove those lines",
        )  # fmt: skip
    return body


def _kept(body: str, gone: Collection[str], bad: Collection[str]) -> Iterator[str]:
    """Yield the lines of metadata but those of the keys `gone`, and but the tags `bad`."""
    name = ""
    for line in body.splitlines(keepends=True):
        key, item = _KEY.match(line), _ITEM.fullmatch(line)
        name = key[2] if key else name
        if line.startswith("#") or (name not in gone and not (name == "tags" and item and item[2] in bad)):
            yield line
