"""The metadata at the head of a card: what the Hub sorts models by, added to what its owner has written there.

What an owner has written stays as it is. What a change did is read back: one that did anything else is refused.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from upcycle.card.facts import Facts
from upcycle.card.readers import language
from upcycle.card.values import at, items, texts
from upcycle.checkpoint.adapter import LORA
from upcycle.checkpoint.lineage import hub_id
from upcycle.checkpoint.place import CARD_FILE
from upcycle.errors import CheckpointError, InputError

# as huggingface_hub finds it (`huggingface_hub.repocard.REGEX_YAML_BLOCK`), and a byte order mark before it
_FRONT = re.compile(r"\A(\ufeff?\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z))")
_MAX_CHARACTERS = 200_000
"""Of metadata; the longest on the Hub hold thousands of figures of evaluations."""

_TOGETHER: dict[str, tuple[str, ...]] = {
    "base_model": ("base_model_relation", "license", "license_name", "license_link"),
    "library_name": ("base_model_relation",),
}
"""A key that says which model a card is about -> keys that were written with it, and are wrong when it is."""
_DEPENDENT = (("base_model", "base_model_relation"), ("license", "license_name", "license_link"))
"""A key, and those that are only added beside one of ours."""

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_LICENSE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+_()-]{0,100}")
_LICENSE_LINK = re.compile(
    r"https://[A-Za-z0-9.-]{1,100}(?:/[A-Za-z0-9._~%/+-]{0,300})?|[A-Za-z0-9][A-Za-z0-9._-]{0,100}"
)
_LANGUAGE = re.compile(r"[A-Za-z]{2,12}(?:-[A-Za-z0-9]{1,8}){0,3}")
_MODEL_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")
_BASE_TAG = re.compile(r"base_model:(?:[a-z]+:)?(.*)", re.DOTALL)
_FILE = re.compile(r".*\.(txt|jsonl?|parquet|gz|zst|md)", re.IGNORECASE)


def metadata(facts: Facts) -> dict[str, Any]:
    """Return what there is to say in the metadata, in the order in which it is written."""
    said, adapter, inner = read(facts.base_card), facts.kind == "adapter", language(facts.config)
    kinds = list(dict.fromkeys(texts(facts.config.get("model_type")) + texts(inner.get("model_type"))))
    licenses = [item for item in texts(said.get("license")) if _LICENSE.fullmatch(item)]
    called = [name for name in texts(said.get("license_name")) if _LICENSE_NAME.fullmatch(name)]
    sources = [source for entry in facts.trainings for source in texts(items(at(entry, "recipe", "data")))]
    names = filter(None, (hub_id(source.partition(":")[0]) for source in sources))
    known = {
        "language": [item for item in texts(said.get("language")) if _LANGUAGE.fullmatch(item)][:200],
        "license": licenses and licenses[0],
        "license_name": licenses and called and called[0],
        "license_link": licenses and _license_link(facts, said.get("license_link")),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation" if inner is facts.config else "image-text-to-text",
        "base_model": facts.base,
        # to the Hub a mixture of experts made of one model is its finetune; by a merge it means one of several models
        "base_model_relation": facts.base and ("adapter" if adapter else "finetune"),
        # of files there are only names
        "datasets": sorted({name for name in names if not _FILE.fullmatch(name)}),
        "tags": [
            *(["moe", "mixture-of-experts"] if facts.experts else []), *(["upcycle"] if facts.lineage else []),
            *(["upcycled"] if facts.experts and facts.lineage else []), *filter(_MODEL_TYPE.fullmatch, kinds),
            *(["lora"] if facts.method == LORA else []),
        ],
    }  # fmt: skip
    return {name: value for name, value in known.items() if value}


def read(card: str | None) -> dict[str, Any]:
    """Return the metadata of a card; none of a card that is broken, or is not there."""
    front = _FRONT.match((card or "")[:_MAX_CHARACTERS])
    try:
        return _parsed(front[2]) if front else {}
    except CheckpointError:
        return {}


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return metadata as YAML, written by the client of the Hub; without the last line break."""
    from huggingface_hub import ModelCardData

    return str(ModelCardData(**values).to_yaml(original_order=list(values)))


def with_metadata(before: str, facts: Facts, line_break: str, dropped: Collection[str] | None) -> str:
    """Return the card `before` with metadata for the keys that its own lacks, at their end.

    A base model that is a directory of a machine, as peft writes it, is replaced. `dropped` are the models that the
    card's marked block cites and the new one does not; None where it has no block. Raises InputError for metadata that
    cannot be changed for certain, and where that of a card with a block is about another model than `facts`.
    """
    wanted, front = metadata(facts), _FRONT.match(before)
    if not front:
        mark, rest = ("\ufeff", before[1:]) if before.startswith("\ufeff") else ("", before)
        return mark + f"---\n{as_yaml(wanted)}\n---\n\n".replace("\n", line_break) + rest
    try:
        body = _without_places(front[2], facts)
        if dropped is not None:
            _check_same(_parsed(body), wanted, dropped)
        body = _added(body, wanted, line_break)
    except InputError as error:
        hint = error.hint or "mend what is between the two lines `---` at its head"
        raise InputError(error.what, where=CARD_FILE, found=error.found, expected=error.expected, hint=hint) from None
    return f"{front[1]}{body}{before[front.end(2) :]}"


def _parsed(text: str) -> dict[str, Any]:
    """Return YAML metadata, every single value as text: `no` is Norwegian, and 1.0 a version.

    Raises CheckpointError for what is no mapping. Nothing is built but texts, lists and mappings.
    """
    try:
        value = yaml.load(text, Loader=yaml.BaseLoader) or {}
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:  # TypeError: a list as a key
        reason = str(getattr(error, "problem", None) or type(error).__name__)
        raise CheckpointError(f"the metadata is not YAML ({reason})") from None
    if not isinstance(value, dict):
        raise CheckpointError("the metadata is no mapping", found=type(value).__name__, expected="`key: value` lines")
    return value


def _added(body: str, wanted: Mapping[str, Any], line_break: str) -> str:
    """Return metadata with what it lacks, but without what belongs to a key that its owner has given a value."""
    own = _parsed(body)
    answered = [others for first, *others in _DEPENDENT if first in own and own[first] != wanted.get(first)]
    theirs = {*own, *(name for others in answered for name in others)}
    added = {name: value for name, value in wanted.items() if name not in theirs}
    if not added:
        return body
    body += (line_break if body.strip() else "") + as_yaml(added).replace("\n", line_break)
    if _parsed(body).keys() != own.keys() | added.keys():
        raise InputError("has metadata to which nothing can be added", expected="a line `key: value` for each")
    return body


def _check_same(own: Mapping[str, Any], wanted: Mapping[str, Any], dropped: Collection[str]) -> None:
    """Raise InputError when the metadata is about another model; of other keys, an owner's value is right."""
    said = {name: set(texts(own[name])) for name in _TOGETHER if name in own}
    wrong = [name for name in said if (wanted[name] not in said[name] if name in wanted else said[name] & set(dropped))]
    beside = dict.fromkeys(name for first in wrong for name in _TOGETHER[first])
    wrong += [name for name in beside if name in own and own[name] != wanted.get(name)]
    if wrong:
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

    own = _parsed(body)
    bases, tags = texts(own.get("base_model")), texts(own.get("tags"))
    bad = [tag for tag in tags if (match := _BASE_TAG.fullmatch(tag)) and is_place(match[1])]
    gone = ["base_model"] if any(map(is_place, bases)) else []
    gone += ["tags"] if bad and bad == tags else []
    expected = {name: value for name, value in own.items() if name not in gone}
    if bad and "tags" in expected:
        expected["tags"] = [tag for tag in tags if tag not in bad]
    lines = [rf"([\"']?){name}\1[ \t]*:.*\n?(?:[ \t-].*\n?)*" for name in gone]
    lines += [rf"[ \t]*-[ \t]+([\"']?){re.escape(tag)}\1[ \t]*\r?(?:\n|\Z)" for tag in bad]
    if not lines:
        return body
    for pattern in lines:
        body = re.sub(f"^{pattern}", "", body, flags=re.MULTILINE)
    body = body.rstrip("\r\n")
    if _parsed(body) != expected:
        raise InputError(
            "names its base model by a place of a machine, which the Hub refuses",
            found=", ".join([*bases, *bad])[:200], expected="a Hub id", hint="remove those lines",
        )  # fmt: skip
    return body


def _license_link(facts: Facts, link: object) -> str | None:
    """Return a link to the license: a file of the base model's repository is not in this one, unless it came along."""
    if not isinstance(link, str) or not _LICENSE_LINK.fullmatch(link):
        return None
    if link.startswith("https:") or link in facts.files:
        return link
    return f"https://huggingface.co/{facts.base}/blob/{facts.revision or 'main'}/{link}" if facts.base else None
