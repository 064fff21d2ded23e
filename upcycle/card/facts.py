"""What there is to say of an output, read from its files alone: its config, how it came to be, how training ended."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from upcycle.card.parameters import Parameters, of_adapter, of_model, recorded
from upcycle.card.values import commit, hub_id, mapping, origin, real, whole
from upcycle.checkpoint.adapter import ADAPTER_CONFIG, EXPERTS, is_adapter
from upcycle.checkpoint.lineage import lineage
from upcycle.checkpoint.place import METRICS_FILE
from upcycle.checkpoint.reader import CHAT_TEMPLATE_FILES, CONFIG_FILE, inside
from upcycle.checkpoint.strict_json import parse_json, read_object
from upcycle.errors import CheckpointError

_TAIL = 4_000_000
"""Bytes of the metrics' end that are looked at: a step of a hundred layers of a hundred experts has a tenth of it."""


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """How evenly one layer used its experts in the last step of a training."""

    layer: int
    max_over_mean: float  # the busiest expert's load over an even share
    dead: int  # experts below 1% of an even share
    experts: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model card is written from; nothing in it is escaped yet, and any value may be nonsense."""

    kind: Literal["model", "adapter"]
    config: Mapping[str, Any]  # config.json or adapter_config.json
    lineage: tuple[Mapping[str, Any], ...]  # see `upcycle.checkpoint.lineage`
    parameters: Parameters | None  # of an adapter its own
    base: str | None  # Hub id of the model that this was made from or belongs to
    revision: str | None  # its commit
    name: str | None  # what that model is called where it is not on the Hub
    base_card: str | None  # its README.md
    pictures: tuple[str, ...]  # paths in the repository
    loads: tuple[LayerLoad, ...]  # of the last step of the training
    files: frozenset[str]  # names beside the weights
    chats: bool  # whether there is a chat template

    @property
    def experts(self) -> tuple[int, ...]:
        """Experts of every layer where they differ, else one number; none for a dense model or a plain LoRA."""
        if self.kind == "adapter" and self.config.get("peft_type") != EXPERTS:
            return ()
        found = next((self.config[name] for name in _EXPERT_FIELDS if self.config.get(name)), None)
        counts = found if isinstance(found, list) else [found]
        sound = [count for count in map(whole, counts[:1000]) if count is not None]
        return tuple(sound[:1] if len(set(sound)) == 1 else sound)

    @property
    def own(self) -> tuple[Mapping[str, Any], ...]:
        """The lineage from the last conversion or adapter on; what is before led to the dense model that it took."""
        made = [entry.get("made") for entry in self.lineage]
        return self.lineage[max((at for at, what in enumerate(made) if what in ("conversion", "adapter")), default=0) :]

    @property
    def trainings(self) -> tuple[Mapping[str, Any], ...]:
        """The trainings of this, the oldest first."""
        return tuple(entry for entry in self.own if entry.get("made") == "training")

    @property
    def past(self) -> tuple[Mapping[str, Any], ...]:
        """The trainings of the dense model, before it was converted or got an adapter."""
        every = self.entries("training")
        return every[: len(every) - len(self.trainings)]

    @property
    def dense(self) -> str | None:
        """The very model that was converted, with its commit; None where at most that is on the Hub which it was
        trained from.
        """
        if not self.base or (self.past and self.base == origin(self.past[0])[0]):
            return None
        return f"{self.base}@{self.revision}" if self.revision else self.base

    @property
    def untrained_conversion(self) -> Mapping[str, Any] | None:
        """The conversion that this is, if nothing came after it."""
        conversion = self.last("conversion")
        return conversion if conversion and not self.trainings and not self.last("merge") else None

    @property
    def has_copies(self) -> bool:
        """Whether the experts are copies of one another still: nothing has been trained, or the routers alone."""
        conversion, trained = self.last("conversion"), [mapping(entry.get("recipe")) for entry in self.trainings]
        copied = conversion is not None and not real(mapping(conversion.get("recipe")).get("noise"))
        untouched = all(recipe.get("train") == "router" for recipe in trained) and not self.last("merge")
        return self.kind == "model" and copied and untouched

    def entries(self, made: str) -> tuple[Mapping[str, Any], ...]:
        """Return what the lineage has of one kind, the oldest first."""
        return tuple(entry for entry in self.lineage if entry.get("made") == made)

    def last(self, made: str) -> Mapping[str, Any] | None:
        """Return the newest entry of one kind."""
        return next(reversed(self.entries(made)), None)


_EXPERT_FIELDS = ("num_local_experts", "num_experts")


def facts_of(
    directory: Path,
    *,
    parameters: Parameters | None = None,
    base: str | None = None,
    base_card: str | None = None,
    pictures: Sequence[str] = (),
) -> Facts:
    """Return what a card can say of the model or adapter in `directory`, whose weights need not be there.

    `parameters` are total and active (of an adapter, its own), for where the records do not know them; `base` is the
    Hub id of the model that it was made from, `base_card` that model's README.md, `pictures` are paths in the
    repository. Raises CheckpointError for a config that cannot be read.
    """
    adapter = is_adapter(directory)
    config = read_object(inside(directory, ADAPTER_CONFIG if adapter else CONFIG_FILE))
    entries = tuple(lineage(directory))
    found, revision, name = _adapter_base(config) if adapter else _dense(entries)
    if base is not None:
        given, _, at = base.partition("@")
        found, revision = hub_id(given, "any"), commit(at) or (revision if given == found else None)
    files = frozenset(path.name for path in directory.iterdir() if path.is_file())
    facts = Facts(
        kind="adapter" if adapter else "model",
        config=config,
        lineage=entries,
        parameters=parameters,
        base=found,
        revision=revision,
        name=name,
        base_card=base_card,
        pictures=tuple(pictures),
        loads=_loads(directory / METRICS_FILE),
        files=files,
        chats=_chats(directory, files),
    )
    return facts if parameters else replace(facts, parameters=_parameters(directory, facts))


def _dense(entries: Sequence[Mapping[str, Any]]) -> tuple[str | None, str | None, str | None]:
    """Return the same of the newest entry whose model is on the Hub, or else of the first."""
    origins = [origin(entry) for entry in entries if entry.get("made") != "verification"]
    return next((found for found in reversed(origins) if found[0]), origins[0] if origins else (None, None, None))


def _adapter_base(config: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
    """The same of the model that an adapter belongs to; of a directory the last name, never its place."""
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        return None, None, None
    found = hub_id(name, revision)
    local = found and not revision and Path(found).exists()
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1] or None
    return None if local else found, commit(revision), last


def _parameters(directory: Path, facts: Facts) -> Parameters | None:
    """Return what the newest record says, or what the weights' headers do."""
    if facts.kind == "adapter":
        return of_adapter(directory)
    told = next(filter(None, map(recorded, reversed(facts.lineage))), None)
    experts = facts.experts
    return told or of_model(
        directory, experts[0] if len(experts) == 1 else None, whole(facts.config.get("num_experts_per_tok"))
    )


def _loads(path: Path) -> tuple[LayerLoad, ...]:
    """Return the loads of the last whole line that has some."""
    if not path.is_file():
        return ()
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read(_TAIL).split(b"\n")
    for line in reversed(lines):
        layers = _layers(line) if line else ()
        if layers:
            return layers
    return ()


def _layers(line: bytes) -> tuple[LayerLoad, ...]:
    try:
        layers = mapping(parse_json(line, METRICS_FILE)).get("layers")
    except CheckpointError:  # the line that a kill cut off, or the first that is looked at
        return ()
    found = [_load(mapping(layer)) for layer in layers] if isinstance(layers, list) else []
    return tuple(load for load in found if load)


def _load(layer: Mapping[str, Any]) -> LayerLoad | None:
    number, dead, busiest = whole(layer.get("layer")), whole(layer.get("dead")), real(layer.get("max_over_mean"))
    load = layer.get("load")
    if number is None or dead is None or busiest is None or not isinstance(load, list):
        return None
    return LayerLoad(number, busiest, dead, len(load))


def _chats(directory: Path, files: frozenset[str]) -> bool:
    if files & set(CHAT_TEMPLATE_FILES):
        return True
    if "tokenizer_config.json" not in files:
        return False
    try:
        return bool(read_object(inside(directory, "tokenizer_config.json")).get("chat_template"))
    except CheckpointError:
        return False
