"""What is known of a mixture of experts: its tensors, its config, its router, and what other readers make of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from upcycle.families.dense.dense import Spine
from upcycle.families.parts import Tensor
from upcycle.families.readers import Readers

Config = Mapping[str, Any]

SCALE = "scale"
"""What attention scores are multiplied by: as the dense config says, else 1 / sqrt(head_dim)."""

Limit = tuple[Callable[[Config], bool], str]
"""Whether it concerns a model with this config, and what to know."""


@dataclass(frozen=True, slots=True)
class Router:
    """The router of one layer of the stock class."""

    scores: str  # softmax or sigmoid
    renormalises: bool  # it divides the top-k weights by their sum, whatever the config says


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """How the config of a mixture says which of its layers are sparse."""

    says: str  # which choices it can express, for people
    fields: Callable[[tuple[bool, ...]], Mapping[str, Any] | None]  # of a choice; None: it cannot express that one


@dataclass(frozen=True)
class Target:
    """A mixture-of-experts architecture."""

    model_type: str
    model_class: str
    title: str  # what people call it
    tensors: tuple[Tensor, ...]
    fields: Mapping[str, str]  # config field -> a letter of the shapes, "top_k", "S/M" or SCALE
    constants: Mapping[str, Any]  # further fields of the config, and their values where a pair carries none
    router: Router
    limits: tuple[Limit, ...]  # settings that llama.cpp, mlx-lm or vLLM ignore, refuse or compute wrongly
    readers: Readers = Readers()
    spine: Spine = Spine()
    stock_loss: bool = True  # transformers' own forward adds a load-balancing loss to its loss
    layer_choice: LayerChoice | None = None  # None: every layer is sparse
    least_experts: int = 1  # of a layer, with which the stock class runs
    nearly: Callable[[Config], str] | None = None
    """How near the dense model a conversion comes where the weights decide; None: as near as rounding."""
    keeps_ffn: str | None = None  # why the experts of an adapter do not merge where the dense FFN stays beside them
    partial_rotary: bool = False  # it rotates a part of each head where partial_rotary_factor says so
    idle_width: int = 0  # neurons of a shared expert that adds nothing, where the class cannot do without a shared one
    shared_like: Literal["any", "experts", "one"] = "any"
    """How wide a shared expert may be: of any width, as several experts together, or as one expert."""
    always_shared: bool = False  # the class cannot do without one, and it is as wide as experts are

    @property
    def has_shared(self) -> bool:
        """Whether there is a shared expert, which every token uses."""
        return any(tensor.role == "shared" for tensor in self.tensors)

    def reader_limits(self, config: Config) -> tuple[str, ...]:
        """Return what other programs do not compute of a model with this config, a sentence each."""
        return tuple(text for concerns, text in self.limits if concerns(config))
