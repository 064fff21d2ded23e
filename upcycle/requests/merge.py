"""The options of `upcycle merge`: from a model with adapter experts to a plain checkpoint that computes the same."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from upcycle.option import argument, option
from upcycle.requests.checks import check_kinds, require, require_beside
from upcycle.requests.conversion import Dtype, shard_bytes
from upcycle.requests.request import Request

if TYPE_CHECKING:
    from upcycle.adapt.merge import Merged

Form = Literal["full", "compact"]
CompactTarget = Literal["granitemoeshared", "granitemoe_swa", "qwen2_moe"]


@dataclass(frozen=True, kw_only=True)
class Merge(Request["Merged"]):
    """Turn a model with adapter experts into a checkpoint that plain transformers reads.

    It is loaded in a process of its own and compared with the adapter before it takes its place.
    """

    adapter: str = argument("Directory of the adapter, as `upcycle attach` and `upcycle train` write it.")
    out: str = argument("Directory to write.", recorded=False)
    to: Form = option(
        "full",
        "full: every expert a whole FFN, in the model's own mixture of experts. compact: the FFN once, as a shared "
        "expert, and the small experts beside it (bottleneck experts only).",
    )  # fmt: skip
    target: CompactTarget | None = option(None, "What --to compact writes; if not given, the first that can.")
    base: str | None = option(None, "The adapter's model, if it has moved.", metavar="MODEL", recorded=False)
    allow_pickle: bool = option(
        False, "Read pickled weights (.bin, .pt) of the base, as tensors and nothing else.", recorded=False
    )
    dtype: Dtype = option(
        "keep", "Data type of the output's weights; keep leaves each tensor as the base has it.", group="Output"
    )
    max_shard_size: str = option("5GB", "Largest file, such as 500MB or 5GB.", group="Output", metavar="SIZE")
    text: str | None = option(
        None, "Text to compare on; a short one is built in.", group="Proof", metavar="FILE", recorded=False
    )
    tokens: int = option(128, "How many tokens of the text to compare on.", group="Proof", recorded=False)
    proof_layers: int = option(
        0, "Run so many first layers of both models; 0 for as many as fit in memory. All tensors are compared anyway.",
        group="Proof", recorded=False,
    )  # fmt: skip
    resume: bool = option(False, "Continue an interrupted merge.", group="Running", recorded=False)
    dry_run: bool = option(
        False, "Check everything and say what it costs; write nothing.", group="Running", recorded=False
    )
    overwrite: bool = option(False, "Replace OUT once the new output is complete.", group="Running", recorded=False)

    def __post_init__(self) -> None:
        """Raise RequestError for values that no merge can have."""
        check_kinds(self)
        require_beside(self.target is None or self.to == "compact", "target", self.target, "--to compact")
        require(2 <= self.tokens <= 10**5, "tokens", self.tokens, "2 to 100,000")
        require(self.proof_layers >= 0, "proof_layers", self.proof_layers, "0 or more")
        self.shard_bytes()

    def shard_bytes(self) -> int:
        """Return `max_shard_size` in bytes."""
        return shard_bytes(self.max_shard_size)
