"""What is known of a dense model: its tensors, its config fields, its rotary positions, its modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from upcycle.families.derived import Derived
from upcycle.families.parts import Place
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import Carry, Rule

ACT = "act_fn"
"""What most FFNs call their activation."""


@dataclass(frozen=True, slots=True)
class Modules:
    """Linear layers of one layer of the dense class, named from the layer on: what adapter experts are attached to.

    | FFN | computes | names |
    |---|---|---|
    | gated | `W_down(act(W_gate x) * (W_up x))` | gate, up, down |
    | gated, fused | the same, gate and up the upper and lower half of one matrix | gate_up, down |
    | ungated | `W_down(act(W_up x))` | up, down |
    """

    block: str  # the FFN: a module of its own that reads one tensor and gives one
    down: str
    attention: tuple[str, ...] = ()
    gate: str | None = None
    up: str | None = None
    gate_up: str | None = None
    act: str = ACT  # attribute of the block, its activation; of a block without one, transformers' name of it
    dropout: str | None = None  # attribute of the block: by which it drops parts of what it gives in training

    @property
    def gated(self) -> bool:
        """Whether the FFN has a gate."""
        return self.gate is not None or self.gate_up is not None

    @property
    def linear(self) -> tuple[str, ...]:
        """The linear layers of the FFN."""
        return tuple(name for name in (self.gate, self.up, self.gate_up, self.down) if name is not None)

    @property
    def matrices(self) -> Mapping[str, tuple[str, int | None]]:
        """The linear layer of gate, up and down, as far as there is one, and which half of its rows: None for all."""
        if self.gate_up is not None:
            return {"gate": (self.gate_up, 0), "up": (self.gate_up, 1), "down": (self.down, None)}
        named = {"gate": self.gate, "up": self.up, "down": self.down}
        return {part: (name, None) for part, name in named.items() if name is not None}

    @property
    def ffn(self) -> dict[str, str]:
        """What an adapter's config says of the FFN: all that is not left at its default."""
        names = {"block": self.block, "gate": self.gate, "up": self.up, "gate_up": self.gate_up, "down": self.down}
        names |= {"act": self.act if self.act != ACT else None, "dropout": self.dropout}
        return {part: name for part, name in names.items() if name is not None}


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
    modules: Modules | None  # None: adapter experts have no place in it
    ignored_tensors: tuple[str, ...] = ()  # regular expressions: buffers of old checkpoints that no reader uses
    spine: Spine = Spine()
    readers: Readers = Readers()
    known: str = ""  # models that people know of it
    sizes: Mapping[str, Callable[[Mapping[str, Any]], int]] = field(default_factory=dict)  # letters of its own
    other_classes: tuple[str, ...] = ()  # names of classes outside transformers that published configs give
    layer_sizes: Mapping[str, Callable[[Mapping[str, Any], int], int]] = field(default_factory=dict)
    """Letters that stand for something else in each layer: of the target's config, and the layer's number."""
    derived: Mapping[str, Derived] = field(default_factory=dict)  # config fields that the class makes of others
    cached: tuple[str, ...] = ("attention.k", "attention.v")  # parts with a row for each value that the cache keeps

    def as_read(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the config with the class's defaults, and with the fields that the class derives."""
        full = {name: rule.default for name, rule in self.fields.items() if isinstance(rule, Carry)} | dict(config)
        return full | {name: derive(full) for name, derive in self.derived.items()}
