"""What is known of a dense model: its tensors, its config fields, its rotary positions, its modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from upcycle.families.derived import Derived
from upcycle.families.parts import Place
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import Carry, Rule


@dataclass(frozen=True, slots=True)
class Modules:
    """Linear layers of one layer of the dense class, named from the layer on: what adapter experts are attached to."""

    block: str  # the FFN
    gate: str  # its linear layers: W_down(act(W_gate x) * (W_up x))
    up: str
    down: str
    attention: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spine:
    """Tensors and modules around the layers, as disk and memory both name them."""

    embeddings: str = "model.embed_tokens.weight"
    layer: str = "model.layers.{layer}"
    norm: str = "model.norm"
    head: str = "lm_head.weight"


@dataclass(frozen=True)
class Dense:
    """A dense architecture."""

    model_type: str
    model_class: str  # the transformers class whose weights these are
    title: str  # what people call it
    parts: Mapping[str, Place]
    fields: Mapping[str, Rule]  # what becomes of each config field; a pair may say otherwise
    rope: Rope | None  # None: `fields` has its rotary settings, which pass as they are
    modules: Modules | None  # None: the FFN has no three linear layers of its own
    ignored_tensors: tuple[str, ...] = ()  # regular expressions: buffers of old checkpoints that no reader uses
    spine: Spine = Spine()
    readers: Readers = Readers()
    known: str = ""  # models that people know of it
    sizes: Mapping[str, Callable[[Mapping[str, Any]], int]] = field(default_factory=dict)  # letters of its own
    layer_sizes: Mapping[str, Callable[[Mapping[str, Any], int], int]] = field(default_factory=dict)
    """Letters that stand for something else in each layer: of the target's config, and the layer's number."""
    derived: Mapping[str, Derived] = field(default_factory=dict)  # config fields that the class makes of others

    def as_read(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the config with the class's defaults, and with the fields that the class derives."""
        full = {name: rule.default for name, rule in self.fields.items() if isinstance(rule, Carry)} | dict(config)
        return full | {name: derive(full) for name, derive in self.derived.items()}
