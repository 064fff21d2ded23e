"""Gathers what a card can say of an output, from its files alone: its config, its lineage, the end of its training."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from upcycle.build.layers import chosen_layers
from upcycle.card.readers import FIELDS, ROUTED, language
from upcycle.card.values import at, items, real, whole
from upcycle.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXPERTS, is_adapter
from upcycle.checkpoint.header import read_header
from upcycle.checkpoint.lineage import Origin, commit, hub_id, lineage, origin
from upcycle.checkpoint.place import METRICS_FILE
from upcycle.checkpoint.reader import CHAT_TEMPLATE_FILES, CONFIG_FILE, inside, open_checkpoint
from upcycle.checkpoint.strict_json import parse_json, read_object
from upcycle.errors import CheckpointError
from upcycle.requests.conversion import LAYERS

Entry = Mapping[str, Any]
"""An entry of a lineage; see `upcycle.checkpoint.lineage`."""

Parameters = tuple[int, int | None]
"""All of them, and those that a token uses, where that is known."""

_MOST_LAYERS = 10_000

_TAIL = 4_000_000
"""Bytes at the end of the metrics that are read: a step of a hundred layers of a hundred experts has a tenth of it."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model card is written from; nothing in it is escaped yet, and any value may be nonsense."""

    kind: Literal["model", "adapter"]
    config: Mapping[str, Any]  # config.json or adapter_config.json
    lineage: tuple[Entry, ...]
    parameters: Parameters | None  # of an adapter its own
    base: str | None  # Hub id of the model that this was made from or belongs to
    revision: str | None  # its commit
    name: str | None  # what that model is called where it is not on the Hub
    base_card: str | None  # its README.md
    pictures: tuple[str, ...]  # paths in the repository
    loads: tuple[Mapping[str, Any], ...]  # of each layer in the last step of the training: layer, load, ...
    files: frozenset[str]  # names beside the weights
    chats: bool  # whether there is a chat template

    @property
    def experts(self) -> tuple[int, ...]:
        """Experts of every layer where they differ, else one number; none for a dense model or a plain LoRA."""
        if self.kind == "adapter" and self.method != EXPERTS:
            return ()
        found = self.said("experts")
        counts = [count for count in map(whole, items(found)[:1000] or [found]) if count is not None]
        return tuple(counts[:1] if len(set(counts)) == 1 else counts)

    @property
    def sparse_layers(self) -> int | None:
        """Layers that have experts where some have none; None where all have, or the records do not tell."""
        conversion, count = self.last("conversion"), whole(self.said("layers"))
        asked = at(conversion, "recipe", "layers")
        if self.last("merge") or not count or count > _MOST_LAYERS or not isinstance(asked, str):
            return None
        sparse = set(islice(chosen_layers(asked, count), 2 * count)) if LAYERS.fullmatch(asked) else set()
        return len(sparse) if 0 < len(sparse) < count and max(sparse) < count else None

    @property
    def method(self) -> object:
        """The `peft_type` of an adapter, such as EXPERTS or LORA; None of a model."""
        return self.config.get("peft_type") if self.kind == "adapter" else None

    @property
    def own(self) -> tuple[Entry, ...]:
        """The lineage from the last conversion or adapter on; what is before led to the dense model that it took."""
        starts = [number for number, entry in enumerate(self.lineage) if entry.get("made") in ("conversion", "adapter")]
        return self.lineage[starts[-1] if starts else 0 :]

    @property
    def trainings(self) -> tuple[Entry, ...]:
        """Every training, the oldest first: those of the dense model too."""
        return tuple(entry for entry in self.lineage if entry.get("made") == "training")

    @property
    def past(self) -> tuple[Entry, ...]:
        """The trainings of the dense model, before it was converted or got an adapter."""
        return tuple(entry for entry in self.trainings if not any(entry is own for own in self.own))

    @property
    def versions(self) -> dict[str, list[str]]:
        """Programs that this was made by, and the versions of each, the oldest first."""
        said = [entry["versions"] for entry in self.lineage if isinstance(entry.get("versions"), Mapping)]
        pairs = [pair for versions in said for pair in sorted(versions.items()) if isinstance(pair[1], str)]
        return {name: list(dict.fromkeys(version for of, version in pairs if of == name)) for name, _ in pairs}

    def last(self, made: str) -> Entry | None:
        """Return the newest entry of one kind."""
        return next((entry for entry in reversed(self.lineage) if entry.get("made") == made), None)

    def said(self, fact: str) -> Any:
        """Return what the config says of one of `FIELDS`, or None."""
        configs = (language(self.config), self.config)
        return next((config[name] for config in configs for name in FIELDS[fact] if config.get(name)), None)


def facts_of(
    directory: Path, *, base: str | None = None, base_card: str | None = None, pictures: Sequence[str] = ()
) -> Facts:
    """Return what a card can say of the model or adapter in `directory`, whose weights need not be there.

    `base` is the Hub id of the model that it was made from, where its files do not tell, `base_card` that model's
    README.md, `pictures` are paths in the repository. Raises CheckpointError for a config that cannot be read.
    """
    adapter, entries = is_adapter(directory), tuple(lineage(directory))
    config = read_object(inside(directory, ADAPTER_CONFIG if adapter else CONFIG_FILE))
    found, revision, name = _base_of_adapter(config) if adapter else _base_of_model(entries)
    if base is not None:
        given, _, named = base.partition("@")
        found, revision = hub_id(given, "any"), commit(named) or (revision if given == found else None)
    files = frozenset(path.name for path in directory.iterdir() if path.is_file())
    facts = Facts(
        kind="adapter" if adapter else "model", config=config, lineage=entries, parameters=None, base=found,
        revision=revision, name=name, base_card=base_card, pictures=tuple(pictures),
        loads=_loads(directory / METRICS_FILE), files=files, chats=_chats(directory, files),
    )  # fmt: skip
    told = None if adapter else next(filter(None, map(_recorded, reversed(entries))), None)
    return replace(facts, parameters=told or counted(directory, facts.experts, whole(facts.said("top_k"))))


def _base_of_model(entries: Sequence[Entry]) -> Origin:
    """Return the origin of the newest entry whose model is on the Hub, or else of the first."""
    origins = [origin(entry) for entry in entries if entry.get("made") != "verification"]
    return next((found for found in reversed(origins) if found.base), (*origins, Origin())[0])


def _base_of_adapter(config: Mapping[str, Any]) -> Origin:
    """Return the model that an adapter belongs to; of a directory the last name, never its place."""
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str):
        return Origin()
    found = hub_id(name, revision)
    local = found and not revision and Path(found).exists()
    return Origin(None if local else found, commit(revision), re.split(r"[/\\]", name.rstrip("/\\"))[-1] or None)


def _recorded(entry: Entry) -> Parameters | None:
    total, active = (whole(at(entry, "parameters", name)) for name in ("total", "active"))
    return (total, active) if total else None


def counted(directory: Path, experts: Sequence[int], top_k: int | None) -> Parameters | None:
    """Count the parameters by the weights' headers, or return None where the weights are not there.

    Each layer has `experts[0]` experts, of which a token uses `top_k`, where that is known.
    """
    try:
        adapter = is_adapter(directory)
        source = read_header(inside(directory, ADAPTER_WEIGHTS)) if adapter else open_checkpoint(directory)
    except CheckpointError:
        return None
    sizes = {name: math.prod(spec.shape) for name, spec in source.tensors.items()}
    total, routed = sum(sizes.values()), sum(size for name, size in sizes.items() if ROUTED.fullmatch(name))
    if adapter or not routed or len(experts) != 1 or not top_k or top_k > experts[0]:
        return total, None
    return total, total - routed + routed * top_k // experts[0]


def _loads(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Return the loads in the last whole line of the metrics that has some."""
    if not path.is_file():
        return ()
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read(_TAIL).split(b"\n")
    return next(filter(None, map(_layers, reversed(lines))), ())


def _layers(line: bytes) -> tuple[Mapping[str, Any], ...]:
    try:
        layers = items(at(parse_json(line, METRICS_FILE), "layers"))
    except CheckpointError:  # the line that a kill cut off, or the first that is looked at
        return ()
    return tuple(filter(_is_load, layers))


def _is_load(layer: object) -> bool:
    numbers = whole(at(layer, "layer")), whole(at(layer, "dead")), real(at(layer, "max_over_mean"))
    return isinstance(at(layer, "load"), list) and None not in numbers


def _chats(directory: Path, files: frozenset[str]) -> bool:
    if files & set(CHAT_TEMPLATE_FILES):
        return True
    with suppress(CheckpointError):  # there is no such file, or it is damaged
        return bool(read_object(inside(directory, "tokenizer_config.json")).get("chat_template"))
    return False
