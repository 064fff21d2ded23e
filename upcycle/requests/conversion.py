"""The options of `upcycle plan`, `convert` and `verify`: what the mixture of experts is, where it goes, its proof."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from upcycle.errors import RequestError
from upcycle.option import argument, option
from upcycle.requests.checks import check_kinds, require, require_beside
from upcycle.requests.request import Request

if TYPE_CHECKING:
    from upcycle.convert.convert import Draft
    from upcycle.plan.report import Report

Dtype = Literal["keep", "f32", "f16", "bf16"]
RouterInit = Literal["normal", "zeros"]
Method = Literal["copy"]
Shared = Literal["none", "zero", "half", "dense"]

MAX_EXPERTS = 65536
"""More experts than any published model has by two orders of magnitude; catches a slip of the keyboard."""

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]i?)?B?", re.IGNORECASE)
LAYERS = re.compile(r"all|(every|first|last):[1-9]\d{0,5}|\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*")
_PART = re.compile(r"(\d{1,5})/(\d{1,5})")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def shard_bytes(max_shard_size: str) -> int:
    """Return a `--max-shard-size` in bytes; raise RequestError when it is no size."""
    matched = _SIZE.fullmatch(max_shard_size.strip())
    size = int(float(matched[1]) * _UNITS[(matched[2] or "").lower()]) if matched else 0
    require(size > 0, "max_shard_size", max_shard_size, "a size such as 500MB or 5GB")
    return size


@dataclass(frozen=True, kw_only=True)
class Conversion(Request["Draft"]):
    """What kind of mixture of experts is made of which model."""

    model: str = argument("Dense checkpoint: a directory, a .gguf file or a Hub id (org/name, org/name@revision).")
    allow_pickle: bool = option(
        False, "Read pickled weights (.bin, .pt), as tensors and nothing else.", group="Input", recorded=False
    )
    experts: int = option(8, "Experts per layer.", group="Mixture of experts", short="n")
    top_k: int = option(2, "Experts that each token uses.", group="Mixture of experts", short="k")
    target: str | None = option(
        None, "Which mixture of experts to make; `upcycle plan MODEL --targets` lists them. By default the one that "
        "most programs read.", group="Mixture of experts", added=True, metavar="TYPE",
    )  # fmt: skip
    layers: str = option(
        "all", "Layers that get experts: all, every:2, first:8, last:8, 8-23, or numbers 0,4,9. Others stay dense.",
        group="Mixture of experts", added=True, metavar="LAYERS",
    )  # fmt: skip
    method: Method = option("copy", "How experts are made. copy: each is the dense FFN (2212.05055).", group="Experts")
    noise: float = option(
        0.0, "Add normal noise to the experts, as a fraction of each tensor's standard deviation.", group="Experts"
    )
    pad_width: bool = option(
        False, "Add zero neurons until stock transformers runs experts of this width; the function stays the same.",
        group="Experts", added=True,
    )  # fmt: skip
    shared: Shared = option(
        "none", "A shared expert, which every token uses. zero: it adds nothing at first; half: it takes half of the "
        "dense FFN's output; dense: it is the dense FFN, beside narrow experts that add nothing at first.",
        group="Experts", added=True,
    )  # fmt: skip
    expert_width: int | None = option(
        None, "Neurons of each narrow expert of --shared dense.", group="Experts", added=True, metavar="N"
    )
    router: RouterInit = option("normal", "How routers start: drawn from N(0, std^2), or all zeros.", group="Routers")
    router_std: float = option(0.02, "Standard deviation of drawn routers.", group="Routers")
    allow_dead_router: bool = option(
        False, "Accept settings under which the router can never learn.", group="Routers", recorded=False
    )
    seed: int = option(
        0, "Seed of everything that is drawn; with a tensor's name it fixes its values.", group="Routers"
    )
    dtype: Dtype = option(
        "keep", "Data type of the output's weights; keep leaves each tensor as it is.", group="Output"
    )
    max_shard_size: str = option("5GB", "Largest file, such as 500MB or 5GB.", group="Output", metavar="SIZE")
    tokenizer: str | None = option(None, "Take the tokenizer from another directory.", group="Output", metavar="DIR")
    chat_template: str | None = option(None, "Take the chat template from a file.", group="Output", metavar="FILE")
    ignore_config: tuple[str, ...] = option(
        (), "Leave out a config field that upcycle does not know (repeat for more).", group="Output", metavar="NAME"
    )

    def __post_init__(self) -> None:
        """Raise RequestError for values that no conversion can have."""
        check_kinds(self)
        require(1 <= self.experts <= MAX_EXPERTS, "experts", self.experts, f"1 to {MAX_EXPERTS}")
        require(1 <= self.top_k <= self.experts, "top_k", self.top_k, f"1 to the {self.experts} experts")
        require(0 <= self.noise < math.inf, "noise", self.noise, "a finite number, 0 or more")
        require(0 <= self.router_std < math.inf, "router_std", self.router_std, "a finite number, 0 or more")
        narrow = self.shared == "dense"
        require_beside(self.expert_width is None or narrow, "expert_width", self.expert_width, "--shared dense")
        require_beside(self.expert_width is not None or not narrow, "shared", self.shared, "--expert-width N beside it")
        alike = self.shared in ("none", "zero") or self.noise == 0
        require_beside(alike, "shared", self.shared, "no --noise, which it has no use for")
        require(LAYERS.fullmatch(self.layers) is not None, "layers", self.layers, "all, every:2, last:8, 8-23 or 0,4,9")
        self.shard_bytes()

    def shard_bytes(self) -> int:
        """Return `max_shard_size` in bytes."""
        return shard_bytes(self.max_shard_size)


@dataclass(frozen=True, kw_only=True)
class Plan(Conversion):
    """Show what a conversion would write, from headers alone."""

    targets: bool = option(
        False, "List the mixtures of experts that the model can become: exact or not, their size, what reads them.",
        recorded=False,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Convert(Conversion):
    """Turn a dense checkpoint into a mixture of experts."""

    out: str = argument("Directory to write; none with --stream-to.", default="", recorded=False)
    stream_to: str | None = option(
        None, "Repository on the Hub to write instead of a directory: each file is made, uploaded and deleted.",
        group="Hub", recorded=False, metavar="REPO",
    )  # fmt: skip
    private: bool = option(False, "Make the repository private.", group="Hub", recorded=False)
    resume: bool = option(False, "Continue an interrupted conversion.", group="Running", recorded=False)
    overwrite: bool = option(False, "Replace OUT once the new output is complete.", group="Running", recorded=False)
    dry_run: bool = option(
        False, "Check everything and print the plan; write nothing.", group="Running", recorded=False
    )
    check_finite: bool = option(
        False, "Refuse a model that holds NaN or infinity, looking while it writes.", group="Running", recorded=False
    )
    part: str | None = option(
        None,
        "Write one part of the work, as 3/16: that many machines write to one OUT, and the last puts it in place.",
        group="Running", recorded=False, metavar="I/N",
    )  # fmt: skip
    workers: int = option(
        0, "Threads that move and compute tensors; 0 chooses.", group="Running", recorded=False, metavar="N"
    )

    def __post_init__(self) -> None:
        """As Conversion; raise RequestError too for workers, a part or a place that cannot be."""
        super().__post_init__()
        require(0 <= self.workers <= 1024, "workers", self.workers, "0 to 1024")
        self.share()
        self._check_place()

    def _check_place(self) -> None:
        """Raise RequestError unless it goes either to a directory or to the Hub, with the options of that."""
        if self.stream_to is None:
            if not self.out:
                raise RequestError("there is no OUT to write to", expected="a directory, or --stream-to", option="out")
            require_beside(not self.private, "private", self.private, "--stream-to")
            return
        if self.out:
            raise RequestError("OUT does not go with --stream-to", found=self.out, option="out")
        for name in ("overwrite", "part"):
            value = getattr(self, name)
            require_beside(not value, name, value, "no --stream-to, which resumes by itself")

    def share(self) -> tuple[int, int]:
        """Return `part` as (number from 1, how many); the whole is (1, 1)."""
        matched = _PART.fullmatch("1/1" if self.part is None else self.part)
        index, count = (int(matched[1]), int(matched[2])) if matched else (0, 0)
        require(1 <= index <= count, "part", self.part, "a part such as 3/16, from 1/16 to 16/16")
        return index, count


@dataclass(frozen=True, kw_only=True)
class Verify(Request["Report"]):
    """Prove that a mixture of experts is what its receipt says."""

    dense: str = argument("The dense checkpoint it was made from.")
    moe: str = argument("The directory that `upcycle convert` wrote.")
    allow_pickle: bool = option(
        False, "Read pickled weights (.bin, .pt) of the dense checkpoint, as tensors and nothing else."
    )
    text: str | None = option(None, "Text to run both models on; a short one is built in.", metavar="FILE")
    tokens: int = option(256, "How many tokens of the text to use.")
    tensors_only: bool = option(False, "Compare the tensors and do not run the models.")
    record: bool = option(
        False, "Keep what was found in MOE/verify.json, for its model card; reads all of it once more."
    )

    def __post_init__(self) -> None:
        """Raise RequestError for a number of tokens that cannot be run."""
        check_kinds(self)
        require(2 <= self.tokens <= 10**6, "tokens", self.tokens, "2 to a million")
