"""The metadata at the head of a card: what the Hub sorts models by, and what of it the base model's card has to say."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from upcycle.card.facts import Facts
from upcycle.card.values import hub_id, mapping, texts
from upcycle.errors import CheckpointError

# as huggingface_hub finds it (`huggingface_hub.repocard.REGEX_YAML_BLOCK`), and a byte order mark before it
FRONT = re.compile(r"\A(\ufeff?\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z))")
MAX_CHARACTERS = 200_000
"""Of metadata; the longest on the Hub hold thousands of figures of evaluations."""

ORDER = (
    "language", "license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model",
    "base_model_relation", "datasets", "tags",
)  # fmt: skip

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_LICENSE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+_()-]{0,100}")
_LICENSE_URL = re.compile(r"https://[A-Za-z0-9.-]{1,100}(?:/[A-Za-z0-9._~%/+-]{0,300})?")
_LICENSE_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,12}(?:-[A-Za-z0-9]{1,8}){0,3}")
_MODEL_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")
_FILE_SUFFIXES = (".txt", ".json", ".jsonl", ".parquet", ".gz", ".zst", ".md")
_MAX_LANGUAGES = 200


def metadata(facts: Facts) -> dict[str, Any]:
    """Return the metadata of a card, in the order in which it is written; only what is known is in it."""
    own = {
        "library_name": "peft" if facts.kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(_tags(facts)),
        "datasets": sorted(set(_data_sets(facts))),
    }
    if facts.base:
        # a mixture of experts made of one model is its finetune to the Hub, which knows adapter, merge and quantized
        # beside that, and means by merge one model of several
        own |= {"base_model": facts.base, "base_model_relation": "adapter" if facts.kind == "adapter" else "finetune"}
    known = own | inherited(facts)
    return {name: known[name] for name in ORDER if known.get(name)}


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return metadata as YAML, written by the client of the Hub; without the last line break."""
    from huggingface_hub import ModelCardData

    return str(ModelCardData(**values).to_yaml(original_order=list(values))) if values else ""


def inherited(facts: Facts) -> dict[str, Any]:
    """Return license and languages of the base model by its card; a card that is broken, or none, says nothing."""
    front = FRONT.match((facts.base_card or "")[: 2 * MAX_CHARACTERS])
    try:
        said = parsed(front[2]) if front else {}
    except CheckpointError:
        return {}
    languages = [item for item in texts(said.get("language")) if _LANGUAGE.fullmatch(item)]
    licenses = [item for item in texts(said.get("license")) if _LICENSE.fullmatch(item)]
    found: dict[str, Any] = {"language": languages[:_MAX_LANGUAGES], "license": licenses[0] if licenses else None}
    if licenses and isinstance(name := said.get("license_name"), str) and _LICENSE_NAME.fullmatch(name):
        found["license_name"] = name
    if licenses:
        found["license_link"] = _license_link(facts, said.get("license_link"))
    return {key: value for key, value in found.items() if value}


def parsed(text: str) -> dict[str, Any]:
    """Return YAML metadata, every single value as text: `no` is Norwegian, and 1.0 a version.

    Raises CheckpointError for what is no mapping. Nothing is built but texts, lists and mappings.
    """
    if len(text) > MAX_CHARACTERS:
        raise CheckpointError("the metadata is too long", found=f"{len(text):,} characters")
    try:
        value = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:  # TypeError: a list as a key
        reason = str(getattr(error, "problem", None) or type(error).__name__)
        raise CheckpointError(f"the metadata is not YAML ({reason})") from None
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise CheckpointError("the metadata is no mapping", found=type(value).__name__, expected="`key: value` lines")
    return value


def _license_link(facts: Facts, link: object) -> str | None:
    """Return a link to the license: a file of the base model's repository is not in this one, unless it came along."""
    if not isinstance(link, str) or not (_LICENSE_URL.fullmatch(link) or _LICENSE_FILE.fullmatch(link)):
        return None
    if link.startswith("https:") or link in facts.files:
        return link
    return f"https://huggingface.co/{facts.base}/blob/{facts.revision or 'main'}/{link}" if facts.base else None


def _tags(facts: Facts) -> Iterator[str]:
    if facts.experts:
        yield from ("moe", "mixture-of-experts")
    if facts.lineage:
        yield "upcycle"
    if facts.experts and facts.lineage:
        yield "upcycled"
    kind = facts.config.get("model_type")
    if isinstance(kind, str) and _MODEL_TYPE.fullmatch(kind):
        yield kind
    if facts.config.get("peft_type") == "LORA":
        yield "lora"


def _data_sets(facts: Facts) -> Iterator[str]:
    """Yield the data sets of the Hub that it or the dense model was trained on; of files there are only names."""
    for training in facts.entries("training"):
        data = mapping(training.get("recipe")).get("data")
        for source in data if isinstance(data, list) else []:
            name = hub_id(source.partition(":")[0]) if isinstance(source, str) else None
            if name and not name.lower().endswith(_FILE_SUFFIXES):
                yield name
