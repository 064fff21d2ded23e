"""The settings in the `adapter_config.json` of adapter experts, from which peft builds them again on their base."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from peft import PeftConfig

from upcycle.checkpoint.adapter import EXPERTS
from upcycle.checkpoint.strict_json import is_finite_number
from upcycle.families.dense.dense import Modules
from upcycle.requests.attach import DEFAULT_SCALING

PEFT_TYPE = EXPERTS

EXPERT_TYPES = ("lora", "bottleneck", "pesc", "ia3")
SCORINGS = ("topk", "dense", "top1")
STARTS = ("normal", "zeros")
FORMS = ({"gate", "up"}, {"up"}, {"gate_up"})
"""Linear layers of an FFN that read its input; see `Modules`."""

_FFN = "the names of block, down and gate, up (or up alone, or gate_up), and of act and dropout where it has them"


@dataclass
class ExpertsConfig(PeftConfig):
    """Settings of adapter experts; raises ValueError for impossible ones, as peft does.

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
        default=None,
        metadata={
            "help": "Modules of the FFN, named from the layer on: block, down, and gate and up, or up alone, or "
            "gate_up for one matrix with the gate's rows first; and attributes of the block: act (act_fn if not given) "
            "and dropout."
        },
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
        if self.scaling is None:
            self.scaling = DEFAULT_SCALING.get(self.expert_type, 1.0)
        for name, holds, expected in chain(self._types(), self._rules()):  # one by one: each counts on those before
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {expected}")

    def _types(self) -> Iterator[tuple[str, object, str]]:
        """Yield (field, whether its type is right, what is expected): the values may come from a file."""
        for name in ("top_k", "rank", "attention_rank", "seed"):
            yield name, type(getattr(self, name)) is int, "a whole number"
        for name in ("scaling", "attention_scaling", "router_std", "balance_coef", "z_coef"):
            yield name, is_finite_number(getattr(self, name)), "a finite number"
        listed = isinstance(self.num_experts, int | list | tuple)
        yield "num_experts", listed and all(type(count) is int for count in self.counts), "whole numbers"
        yield "ffn", self.ffn is None or _is_ffn(self.ffn), _FFN
        yield "attention", self.attention is None or _are_texts(self.attention), "a list of names"

    def _rules(self) -> Iterator[tuple[str, object, str]]:
        """Yield (field, whether its value is right, what is expected), once the types are."""
        for name, known in (("expert_type", EXPERT_TYPES), ("routing", SCORINGS), ("router", STARTS)):
            yield name, getattr(self, name) in known, f"one of {', '.join(known)}"
        counts = [count for count in self.counts if count]
        yield "num_experts", counts and min(counts) > 0, "numbers above 0"
        fewest = min(counts)
        yield "top_k", 1 <= self.top_k <= fewest, f"1 to the {fewest} experts of a layer"
        yield "rank", self.rank >= 1, "1 or more"
        yield "attention_rank", self.attention_rank >= 0, "0 or more"
        yield "shared_a", not self.shared_a or self.expert_type == "lora", "experts of type lora, which have an A"

    @property
    def modules(self) -> Modules:
        """`ffn` and `attention` as one; both must be there."""
        assert self.ffn is not None  # noqa: S101
        return Modules(**self.ffn, attention=tuple(self.attention or ()))

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
    if len(counts) > layers:
        raise ValueError(f"num_experts is {list(counts)}, expected at most one number for each of {layers} layers")
    return [counts[layer * len(counts) // layers] for layer in range(layers)]


def _are_texts(values: object) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)


def _is_ffn(named: object) -> bool:
    """Whether this names all the parts of an FFN, and nothing else."""
    if not isinstance(named, dict) or not _are_texts(list(named.values())) or not {"block", "down"} <= set(named):
        return False
    return set(named) - {"block", "down", "act", "dropout"} in FORMS
