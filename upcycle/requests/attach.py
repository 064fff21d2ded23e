"""The options of `upcycle attach`: which experts, routers and existing LoRA adapters a frozen dense model gets."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from upcycle.errors import RequestError
from upcycle.option import argument, option
from upcycle.requests.checks import check_kinds, require, require_beside
from upcycle.requests.conversion import MAX_EXPERTS
from upcycle.requests.request import Request

if TYPE_CHECKING:
    from upcycle.adapt.attach import Attached

ExpertType = Literal["lora", "bottleneck", "pesc", "ia3"]
Routing = Literal["topk", "dense", "top1"]
RouterStart = Literal["normal", "zeros", "prototypes"]
AttentionDeltas = Literal["refuse", "drop", "mean", "sum"]
Baseline = Literal["single-lora"]

DEFAULT_EXPERTS = 8
DEFAULT_RANK = 16
DEFAULT_SCALING = {"lora": 2.0}
"""By the type of experts; 1 where it is not named."""

_EXPERTS, _ROUTERS, _COMPOSED, _RUN = "Experts", "Routers", "Existing LoRA adapters", "Running"


@dataclass(frozen=True, kw_only=True)
class Attach(Request["Attached"]):
    """Give every layer of a frozen dense model small experts and a router: a PEFT adapter, to be trained."""

    model: str = argument("Dense checkpoint: a directory, a .gguf file or a Hub id (org/name, org/name@revision).")
    out: str = argument("Directory to write: the adapter.", recorded=False)
    allow_pickle: bool = option(
        False, "Read pickled weights (.bin, .pt), as tensors and nothing else.", group="Input", recorded=False
    )

    experts: tuple[int, ...] = option(
        (), "Experts per layer, 8 if not given; several numbers, as 2,4,6,8, are those of equal parts of the depth "
        "(and keep it from being merged).",
        group=_EXPERTS, short="n", metavar="N[,N...]", joined=True,
    )  # fmt: skip
    expert_type: ExpertType = option(
        "lora",
        "lora: the FFN with low-rank updates of its matrices; bottleneck: a narrow FFN of its form beside it; pesc: "
        "a bottleneck on the FFN's output; ia3: a vector that scales the FFN's activation.",
        group=_EXPERTS,
    )
    rank: int | None = option(None, "Rank of lora, width of bottleneck and pesc; 16 if not given.", group=_EXPERTS)
    scaling: float | None = option(
        None, "Factor of what experts add (alpha / rank elsewhere); 2 for lora, 1 for others.", group=_EXPERTS
    )
    shared_a: bool = option(False, "Experts of type lora share their A matrices.", group=_EXPERTS)
    attention_rank: int = option(0, "Rank of a plain LoRA on the attention; 0 for none.", group=_EXPERTS)

    top_k: int = option(2, "Experts that each token uses.", group=_ROUTERS, short="k")
    routing: Routing = option(
        "topk", "topk: weights sum to one; dense: all experts, by softmax; top1: one, weighed by its probability.",
        group=_ROUTERS,
    )  # fmt: skip
    router: RouterStart | None = option(
        None, "How routers start: drawn from N(0, std^2), all zeros, or prototypes of the LoRAs, which is the default "
        "where there are any.", group=_ROUTERS,
    )  # fmt: skip
    router_std: float = option(0.02, "Standard deviation of drawn routers.", group=_ROUTERS)
    seed: int = option(0, "Seed of everything that is drawn; with a tensor's name it fixes its values.", group=_ROUTERS)

    from_lora: tuple[str, ...] = option(
        (), "Take a LoRA adapter, local or of the Hub, as an expert (repeat for more).", group=_COMPOSED,
        metavar="ADAPTER",
    )  # fmt: skip
    attention_deltas: AttentionDeltas = option(
        "refuse", "What becomes of their updates of the attention, which has no experts: refuse them, drop them, or "
        "add their mean or sum for every token.", group=_COMPOSED,
    )  # fmt: skip

    baseline: Baseline | None = option(
        None, "Write the control instead: one plain LoRA with as many parameters.", group=_RUN
    )
    overwrite: bool = option(False, "Replace OUT once the new adapter is complete.", group=_RUN, recorded=False)

    def __post_init__(self) -> None:
        """Raise RequestError for values that no adapter can have."""
        check_kinds(self)
        counts = self.counts
        fits = all(0 <= count <= MAX_EXPERTS for count in counts) and max(counts) > 0
        require(fits, "experts", self.experts, f"numbers up to {MAX_EXPERTS}, not all 0")
        fewest = min(count for count in counts if count)
        require(1 <= self.top_k <= fewest, "top_k", self.top_k, f"1 to {fewest}, the experts of a layer")
        if self.routing == "topk" and self.top_k == 1:
            raise RequestError(
                "the router would never learn: the weights of the chosen experts are divided by their sum, so with one "
                "expert per token the weight is 1 whatever the router says",
                found="--top-k 1", expected="--top-k 2 or more", option="top_k",
                hint="--routing top1 weighs the one expert by its probability",
            )  # fmt: skip
        require(1 <= self.width <= 2**14, "rank", self.rank, f"1 to {2**14}")
        require(0 <= self.attention_rank <= 2**14, "attention_rank", self.attention_rank, f"0 to {2**14}")
        scaling = self.factor
        require(0 < scaling < math.inf, "scaling", self.scaling, "a finite number above 0")
        require(0 <= self.router_std < math.inf, "router_std", self.router_std, "a finite number, 0 or more")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 or more, in 63 bits")
        lora = self.expert_type == "lora"
        require_beside(lora or not self.shared_a, "shared_a", True, "--expert-type lora")
        vectors = self.expert_type == "ia3"
        require_beside(not vectors or self.rank is None, "rank", self.rank, "none for ia3, whose experts are vectors")
        self._check_composed(lora)

    @property
    def counts(self) -> tuple[int, ...]:
        """Experts per layer, or of equal parts of the depth."""
        return self.experts or (len(self.from_lora) or DEFAULT_EXPERTS,)

    @property
    def width(self) -> int:
        """The rank, or the width of an expert."""
        return DEFAULT_RANK if self.rank is None else self.rank

    @property
    def factor(self) -> float:
        """Of what experts add."""
        if self.scaling is not None:
            return self.scaling
        return DEFAULT_SCALING.get(self.expert_type, 1.0)

    @property
    def start(self) -> RouterStart:
        """How routers start."""
        return self.router or ("prototypes" if self.from_lora else "normal")

    def _check_composed(self, lora: bool) -> None:
        loras, count = self.from_lora, len(self.from_lora)
        if not loras:
            require_beside(self.router != "prototypes", "router", self.router, "--from-lora, to take them from")
            policy = self.attention_deltas
            require_beside(policy == "refuse", "attention_deltas", policy, "--from-lora")
            return
        require_beside(lora, "from_lora", f"--expert-type {self.expert_type}", "--expert-type lora")
        require_beside(self.counts == (count,), "experts", self.experts, f"the {count} of --from-lora")
        require_beside(self.scaling is None, "scaling", self.scaling, "no --from-lora: each LoRA has its own")
        require_beside(self.rank is None, "rank", self.rank, "no --from-lora: each LoRA has its own")
        require_beside(not self.attention_rank, "attention_rank", self.attention_rank, "no --from-lora")
        require_beside(self.baseline is None, "baseline", self.baseline, "no --from-lora")
