"""The options of `upcycle train`: data, batches, optimizer, router losses, and what is trained."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from upcycle.errors import RequestError
from upcycle.option import argument, option
from upcycle.requests.checks import check_kinds, require
from upcycle.requests.request import Request

if TYPE_CHECKING:
    from upcycle.train.loop import Trained

TrainedPart = Literal["all", "experts", "router", "lora"]
Schedule = Literal["cosine", "inverse-sqrt", "wsd", "constant"]
Scope = Literal["sequence", "micro-batch", "global-batch"]
TrainDtype = Literal["auto", "f32", "bf16"]
OptimizerKind = Literal["adamw", "adamw8bit"]
Tracker = Literal["none", "tensorboard", "wandb", "trackio"]

_DATA, _BATCH, _OPTIMIZER, _LOSSES = "Data", "Batches and steps", "Optimizer", "Router losses"
_MODEL, _LORA, _RUN = "Model and precision", "LoRA", "Running"


@dataclass(frozen=True, kw_only=True)
class Train(Request["Trained"]):
    """Continue training a mixture of experts, an adapter, or a dense model as its control.

    A batch has batch-size x grad-accum x processes sequences, and a step is the same however it is cut. Start several
    processes with `torchrun --nproc_per_node 8 -m upcycle.cli train ...`, on GPUs or CPUs.
    """

    model: str = argument(
        "Model to start from: a directory, a .gguf file or a Hub id; or an adapter, to train it alone."
    )
    out: str = argument(
        "Directory to write: metrics.jsonl and checkpoints while training, at the end the model.", recorded=False
    )

    base: str | None = option(None, "The model of an adapter, if it has moved.", metavar="MODEL", recorded=False)
    data: tuple[str, ...] = option(
        (), "Text to train on: .txt, .jsonl (text, messages, conversations, prompt and completion, or instruction and "
        "output), .parquet, a directory of those, or a Hub data set ORG/NAME[:CONFIG[:SPLIT]] (repeat for a mixture).",
        group=_DATA, metavar="SOURCE",
    )  # fmt: skip
    data_weight: tuple[float, ...] = option(
        (), "Share of the tokens for each --data, in their order; equal if not given.", group=_DATA, metavar="W"
    )
    eval_data: tuple[str, ...] = option((), "Text to measure the loss on.", group=_DATA, metavar="SOURCE")
    eval_split: float = option(0.0, "Hold out this share of the data and measure the loss on it.", group=_DATA)
    text_field: str = option("text", "Field or column that holds the text.", group=_DATA, metavar="NAME")
    eos: str | None = option(
        None, "Token to end answers with where they end in none that stops the model; OUT's generation_config.json "
        "names it too.", group=_DATA, metavar="TOKEN", added=True,
    )  # fmt: skip
    seq_len: int = option(1024, "Tokens of a sequence; documents are packed into them.", group=_DATA)
    shuffle: int = option(1024, "Sequences to shuffle among; 0 keeps the order.", group=_DATA, metavar="N")
    seed: int = option(0, "Seed of the order of the data, of dropout and of LoRA's start.", group=_DATA)

    batch_size: int = option(4, "Sequences that one process holds at a time.", group=_BATCH)
    grad_accum: int = option(1, "Such micro-batches for one step.", group=_BATCH)
    max_steps: int = option(1000, "Optimizer steps.", group=_BATCH)
    eval_every: int = option(100, "Steps between measurements on the held-out text.", group=_BATCH, metavar="N")
    eval_sequences: int = option(64, "Sequences of held-out text to measure on.", group=_BATCH, metavar="N")
    save_every: int = option(500, "Steps between checkpoints.", group=_BATCH, metavar="N")
    keep: int = option(2, "Checkpoints to keep; older ones go when a newer one is safe.", group=_BATCH, recorded=False)

    lr: float = option(1e-4, "Peak learning rate.", group=_OPTIMIZER)
    router_lr: float | None = option(None, "Peak learning rate of the routers; --lr if not given.", group=_OPTIMIZER)
    expert_lr: float | None = option(None, "Peak learning rate of the experts; --lr if not given.", group=_OPTIMIZER)
    schedule: Schedule = option("cosine", "How the learning rate changes after the warm-up.", group=_OPTIMIZER)
    warmup_steps: int | None = option(
        None, "Steps over which the learning rate rises; a tenth of all, and 100 at most, if not given.",
        group=_OPTIMIZER, metavar="N",
    )  # fmt: skip
    decay_steps: int | None = option(
        None, "Last steps, over which wsd falls; a fifth of all if not given.", group=_OPTIMIZER, metavar="N"
    )
    min_lr: float = option(0.1, "Where cosine and wsd end, as a share of the peak.", group=_OPTIMIZER)
    start_step: int = option(
        0, "Steps of an earlier training: the schedule continues from there, without a second warm-up (inverse-sqrt as "
        "in 2212.05055).", group=_OPTIMIZER, metavar="N",
    )  # fmt: skip
    weight_decay: float = option(0.1, "Decoupled weight decay of matrices.", group=_OPTIMIZER)
    beta1: float = option(0.9, "AdamW's decay of the mean gradient.", group=_OPTIMIZER)
    beta2: float = option(0.95, "AdamW's decay of the mean squared gradient.", group=_OPTIMIZER)
    clip: float = option(1.0, "Largest norm of the gradient; 0 does not clip.", group=_OPTIMIZER)
    optimizer: OptimizerKind = option(
        "adamw", "adamw8bit keeps the moments in 8 bits (needs bitsandbytes).", group=_OPTIMIZER
    )

    balance_coef: float = option(0.01, "Weight of each layer's load-balancing loss (1 is even).", group=_LOSSES)
    balance_scope: Scope = option(
        "sequence", "What the load is counted over. global-batch is exact, by a first pass without gradients where a "
        "batch comes in several micro-batches.", group=_LOSSES,
    )  # fmt: skip
    z_coef: float = option(0.001, "Weight of each layer's router z-loss.", group=_LOSSES)
    importance_coef: float = option(
        0.0, "Weight of each layer's importance loss, of a sequence (0 is even).", group=_LOSSES
    )

    train: TrainedPart = option("all", "What is trained.", group=_MODEL)
    dtype: TrainDtype = option(
        "auto", "Data type of the parameters; bf16 has float32 master weights and routers. auto: bf16 on a GPU that "
        "has it, f32 elsewhere.", group=_MODEL,
    )  # fmt: skip
    gradient_checkpointing: bool = option(
        False, "Compute each layer twice and keep less in memory.", group=_MODEL, recorded=False
    )
    compile: bool = option(False, "Compile the model with torch.compile.", group=_MODEL, recorded=False)
    attn_implementation: str | None = option(
        None, "eager, sdpa, flash_attention_2, flex_attention ... as transformers has them.", group=_MODEL,
        metavar="NAME", recorded=False,
    )  # fmt: skip
    experts_implementation: str | None = option(
        None, "eager, grouped_mm, batched_mm, sonicmoe, deepgemm ... as transformers has them.", group=_MODEL,
        metavar="NAME", recorded=False,
    )  # fmt: skip
    load_in_4bit: bool = option(
        False, "Hold the frozen linear layers in 4 bits (with --train lora, or below an adapter; needs bitsandbytes).",
        group=_MODEL,
    )  # fmt: skip

    lora_rank: int = option(16, "Rank.", group=_LORA)
    lora_alpha: float = option(32.0, "The update counts alpha / rank.", group=_LORA)
    lora_keep: bool = option(False, "Leave the adapter by itself, unmerged, in OUT.", group=_LORA)

    device: str = option(
        "auto", "Where to train: cpu, cuda, cuda:1, mps; auto takes what is there.", group=_RUN, recorded=False
    )
    resume: bool = option(False, "Go on from the newest complete checkpoint in OUT.", group=_RUN, recorded=False)
    overwrite: bool = option(False, "Throw away the training that is in OUT.", group=_RUN, recorded=False)
    tracker: Tracker = option("none", "Also report to a tracker.", group=_RUN, recorded=False)

    def __post_init__(self) -> None:
        """Raise RequestError for values that no training can have."""
        check_kinds(self)
        if not self.data:
            raise RequestError(
                "there is nothing to train on", expected="--data with a file or a data set", option="data"
            )
        self._check_weights()
        for name, least, most in _RANGES:
            value = getattr(self, name)
            require(value is None or least <= value <= most, name, value, f"{least:g} to {most:g}")
        require(not (self.eval_data and self.eval_split), "eval_split", self.eval_split, "0 beside --eval-data")
        require(not self.lora_keep or self.train == "lora", "lora_keep", True, "--train lora beside it")
        fits = self.decay_steps is None or self.decay_steps + self.warmup <= self.start_step + self.max_steps
        require(fits, "decay_steps", self.decay_steps, "no more than the steps after the warm-up")

    @property
    def warmup(self) -> int:
        """Steps of the warm-up."""
        return min(self.max_steps // 10, 100) if self.warmup_steps is None else self.warmup_steps

    @property
    def decay(self) -> int:
        """Steps of the decay of wsd."""
        return self.max_steps // 5 if self.decay_steps is None else self.decay_steps

    def _check_weights(self) -> None:
        weights = self.data_weight
        fits = len(weights) in (0, len(self.data))
        require(fits, "data_weight", f"{len(weights)} weights", f"one for each of the {len(self.data)} --data, or none")
        good = all(weight > 0 for weight in weights) and sum(weights) < math.inf
        require(good, "data_weight", weights, "numbers above 0 with a finite sum")


_MANY, _BIG = 2**53, 1e6
_RANGES: tuple[tuple[str, float, float], ...] = (
    *((name, 1, 2**20) for name in ("batch_size", "grad_accum")),
    ("lora_rank", 1, 2**14),
    *((name, 1, _MANY) for name in ("max_steps", "eval_every", "eval_sequences", "save_every", "keep")),
    *((name, 0, _MANY) for name in ("warmup_steps", "decay_steps", "start_step", "shuffle")),
    ("seq_len", 2, 2**24),
    ("seed", 0, 2**63 - 1),
    *((name, 0, _BIG) for name in ("balance_coef", "z_coef", "importance_coef", "clip", "weight_decay")),
    *((name, 0, 10) for name in ("lr", "router_lr", "expert_lr")),
    ("eval_split", 0, 0.99),
    ("min_lr", 0, 1),
    *((name, 0, 0.999999) for name in ("beta1", "beta2")),
    ("lora_alpha", 1e-6, _BIG),
)
"""Option, least and most; no NaN is between them."""
