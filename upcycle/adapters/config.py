"""`adapter_config.json` of adapter experts: what is needed to build them again on the model they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from peft import PeftConfig

from upcycle.checkpoint.adapter import EXPERTS
from upcycle.recipe.attach import DEFAULT_SCALING

PEFT_TYPE = EXPERTS

EXPERT_TYPES = ("lora", "bottleneck", "pesc", "ia3")
SCORINGS = ("topk", "dense", "top1")
STARTS = ("normal", "zeros")


@dataclass
class ExpertsConfig(PeftConfig):
    """Settings of adapter experts; raises ValueError for what none can have, as peft does.

    The names of modules are taken from upcycle's families where they are not given.
    """

    expert_type: str = field(default="lora", metadata={"help": "lora, bottleneck, pesc or ia3."})
    num_experts: int | list[int] = field(
        default=8, metadata={"help": "Experts of each layer; of several numbers, each is that of a part of the depth."}
    )
    top_k: int = field(default=2, metadata={"help": "Experts that each token uses."})
    routing: str = field(default="topk", metadata={"help": "topk (weights sum to one), dense (all experts) or top1."})
    rank: int = field(default=16, metadata={"help": "Rank of lora, width of a bottleneck or pesc."})
    scaling: float | None = field(
        default=None,
        metadata={"help": "Factor of what experts add (alpha / rank elsewhere); 2 for lora, 1 for others."},
    )
    shared_a: bool = field(default=False, metadata={"help": "Experts of type lora share their A matrices."})
    attention_rank: int = field(default=0, metadata={"help": "Rank of a plain LoRA on the attention; 0 for none."})
    attention_scaling: float = field(default=2.0, metadata={"help": "Factor of the LoRA on the attention."})
    router: str = field(
        default="normal", metadata={"help": "How routers start: normal, from N(0, router_std^2), or zeros."}
    )
    router_std: float = field(default=0.02, metadata={"help": "Standard deviation of drawn routers."})
    seed: int = field(default=0, metadata={"help": "With a tensor's name it fixes what is drawn."})
    balance_coef: float = field(
        default=0.01, metadata={"help": "Weight of the load-balancing loss that training by any loop adds."}
    )
    z_coef: float = field(default=0.001, metadata={"help": "Weight of the router z-loss, likewise."})
    ffn: dict[str, str] | None = field(
        default=None, metadata={"help": "block, gate, up and down: modules of the FFN, named from the layer on."}
    )
    attention: list[str] | None = field(
        default=None, metadata={"help": "Linear layers of the attention, named from the layer on."}
    )
    target_modules: list[str] | None = field(default=None, metadata={"help": "Derived from ffn and attention."})
    base_fingerprint: str | None = field(
        default=None, metadata={"help": "SHA-256 by which the base model is recognised (upcycle.checkpoint.identity)."}
    )
    upcycle_version: str | None = field(default=None, metadata={"help": "What wrote the adapter."})

    def __post_init__(self) -> None:
        """Check everything that needs no model."""
        super().__post_init__()
        from peft.utils import PeftType

        self.peft_type = PeftType[PEFT_TYPE]
        listed = isinstance(self.num_experts, int | list | tuple)
        _require("num_experts", self.num_experts, listed, "a number, or a list of them")
        counts = self.counts
        _require("num_experts", counts, counts and all(type(count) is int for count in counts), "whole numbers")
        _check_numbers(self)
        if self.scaling is None:
            self.scaling = DEFAULT_SCALING.get(self.expert_type, 1.0)
        _require("expert_type", self.expert_type, self.expert_type in EXPERT_TYPES, f"one of {', '.join(EXPERT_TYPES)}")
        _require("routing", self.routing, self.routing in SCORINGS, f"one of {', '.join(SCORINGS)}")
        _require("router", self.router, self.router in STARTS, f"one of {', '.join(STARTS)}")
        _require("num_experts", self.num_experts, counts and min(counts) >= 0 < max(counts), "numbers above 0")
        fewest = min(count for count in counts if count)
        parts = {"block", "gate", "up", "down"}
        named = self.ffn is None or (
            isinstance(self.ffn, dict) and set(self.ffn) == parts and all(isinstance(v, str) for v in self.ffn.values())
        )
        _require("ffn", self.ffn, named, "the names of block, gate, up and down")
        listed = isinstance(self.attention, list | tuple) and all(isinstance(v, str) for v in self.attention)
        _require("attention", self.attention, self.attention is None or listed, "a list of names")
        _require("top_k", self.top_k, 1 <= self.top_k <= fewest, f"1 to the {fewest} experts of a layer")
        _require("rank", self.rank, self.rank >= 1, "1 or more")
        _require("attention_rank", self.attention_rank, self.attention_rank >= 0, "0 or more")
        fits = not self.shared_a or self.expert_type == "lora"
        _require("shared_a", self.shared_a, fits, "experts of type lora, which have an A")

    @property
    def counts(self) -> list[int]:
        """`num_experts` as a list."""
        return [self.num_experts] if isinstance(self.num_experts, int) else list(self.num_experts)

    def to_dict(self) -> dict[str, Any]:
        """As peft's, with plain values for JSON."""
        return {**super().to_dict(), "peft_type": PEFT_TYPE}


def spread_over_depth(counts: Sequence[int], layers: int) -> list[int]:
    """Return the number of experts of every layer: each of `counts` is that of an equal part of the depth (MoLA,
    2402.08562); raise ValueError where there are more of them than layers.
    """
    _require("num_experts", list(counts), len(counts) <= layers, f"at most one number for each of {layers} layers")
    return [counts[layer * len(counts) // layers] for layer in range(layers)]


def _check_numbers(config: "ExpertsConfig") -> None:
    """Raise ValueError for what came out of a file as another type than it has."""
    for name in ("top_k", "rank", "attention_rank", "seed"):
        _require(name, getattr(config, name), type(getattr(config, name)) is int, "a whole number")
    for name in ("scaling", "attention_scaling", "router_std", "balance_coef", "z_coef"):
        value = getattr(config, name)
        finite = type(value) in (int, float) and isfinite(value)
        _require(name, value, finite or (name == "scaling" and value is None), "a finite number")


def _require(name: str, found: object, good: object, expected: str) -> None:
    if not good:
        raise ValueError(f"{name} is {found}, expected {expected}")
