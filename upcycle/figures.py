"""Every figure that upcycle tells of a model or a training: its name, meaning, unit and healthy range, one row each.

A row's name is the key in `metrics.jsonl` and the name of the function that computes it: of router losses in
`upcycle.moe.losses`, of the others, but for those of a step, in `upcycle.moe.measures`. To add a figure, write its row
here and its function there; training, the panel and the pictures then have it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Source = Literal["tokens", "text", "load", "weights", "loss", "step"]
"""What a figure is computed of:

    tokens   what a router decided for each token; a mean over tokens, so that parts of a batch can be averaged
    text     the same, but of all tokens of a text at once, so that only `upcycle verify` has it
    load     the shares of the choices that the experts of a layer got over the whole batch
    weights  the weights of a layer's experts
    loss     what a router decided, as a loss that training may add; a mean over groups of tokens
    step     a whole step of training
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure."""

    name: str
    of: Source
    meaning: str
    healthy: str
    label: str = ""  # short name in the panel; empty: not shown there
    title: str = ""  # over its picture, which figures of one title share; empty: not drawn
    unit: str = ""  # beside the axis of its picture
    form: str = ".4f"  # how the panel writes it
    missing: str = ""  # what the panel writes for null
    even: float | None = None  # value where routing is even, or experts are as they should be
    bound: float | None = None  # from where on, up or down, it is counted or told as trouble
    narrow: bool = False  # shown in a narrow terminal too
    added: bool = False  # a count: over layers it is added up, not compared
    scoped: bool = False  # a router loss that --balance-scope is for; others are of each sequence


_ROWS = (
    Figure("loss", "step", "cross entropy of the next token, nats", "falls", label="loss"),
    Figure("eval_loss", "step", "cross entropy on held-out text, nats", "falls", label="held out"),
    Figure(
        "balance_loss", "loss", "E sum f P, f the experts' shares of the choices, P their mean probabilities",
        "below 1.1", label="balance", title="Balance loss", unit="1 is even", even=1.0, scoped=True,
    ),
    Figure(
        "importance_loss", "loss", "squared coefficient of variation of the experts' summed probabilities",
        "near 0", label="importance", title="Importance loss", unit="0 is even", even=0.0,
    ),
    Figure(
        "z_loss", "loss", "mean squared log-sum-exp of the router's logits", "not growing", label="router z",
        title="Router z-loss", unit="squared log-sum-exp of the logits",
    ),
    Figure("load", "tokens", "share of the choices that each expert gets; they sum to 1", "1 / E each"),
    Figure(
        "max_over_min", "load", "the busiest expert's load over the idlest one's; null where that has none",
        "below 2 or 3, falling", label="max/min", form=".2f", missing="inf", even=1.0,
    ),
    Figure(
        "max_over_mean", "load", "the busiest expert's load over an even share", "below 2, falling",
        label="max/mean", title="Busiest expert", unit="times an even share", form=".2f", even=1.0, narrow=True,
    ),
    Figure(
        "entropy", "tokens", "how undecided the router is, token by token, of the most that E experts allow",
        "falls slowly from 1", label="entropy", title="Router entropy", unit="of the most there can be", form=".3f",
        even=1.0,
    ),
    Figure(
        "dead", "load", "experts that get less than 1% of an even share; in a batch of few tokens that can be chance",
        "0", label="dead", title="Cold and dead experts", unit="experts of all layers", form="d", bound=0.01,
        narrow=True, added=True,
    ),
    Figure(
        "cold", "load", "experts that get less than 5% of an even share; the dead are among them", "0",
        label="cold", title="Cold and dead experts", unit="experts of all layers", form="d", bound=0.05, narrow=True,
        added=True,
    ),
    Figure("logit_std", "text", "standard deviation of the router's logits over tokens and experts", "above 0"),
    Figure(
        "cosine", "weights", "how alike the weights of two experts are, on average; 1 for copies", "falls from 1",
        label="cosine", title="Experts' likeness", unit="mean cosine of two experts' weights", bound=1 - 1e-6,
    ),
    Figure("lr", "step", "learning rate of each group of parameters", "as the schedule says", label="lr", form=".2e"),
    Figure(
        "grad_norm", "step", "L2 norm of the gradient before clipping, of all and of each group of parameters",
        "not growing", label="gradient", form=".3g",
    ),
    Figure("tokens", "step", "tokens that were trained on so far", "", form=",d"),
    Figure("epoch", "step", "how often the data that was read least has been read", "", form=".2f"),
    Figure(
        "tokens_per_second", "step", "tokens of a step over its seconds", "steady", title="Throughput",
        unit="tokens per second", form=",.0f",
    ),
    Figure(
        "mfu", "step", "share of the device's peak arithmetic; null where that is not known", "steady",
        title="Model FLOPs utilisation", unit="of the device's peak", form=".1%",
    ),
)  # fmt: skip

FIGURES = {row.name: row for row in _ROWS}
"""Name -> row, in the order in which figures are told."""

ROUTER_LOSSES = tuple(row.name for row in _ROWS if row.of == "loss")


def rows_of(*sources: Source) -> Iterator[Figure]:
    """Yield the figures that are computed of these."""
    return (row for row in _ROWS if row.of in sources)


def bound_of(name: str) -> float:
    """Return the value of a figure from which on it is trouble."""
    bound = FIGURES[name].bound
    assert bound is not None, name  # noqa: S101
    return bound


PER_LAYER = tuple(row for row in _ROWS if row.of in ("tokens", "load", "weights") and row.name != "load")
"""Figures that are one number for each layer, besides its losses."""
