"""Makes the line of `metrics.jsonl` that tells a step, with the figures of `upcycle.figures`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upcycle.figures import ROUTER_LOSSES, rows_of
from upcycle.moe.measures import measured
from upcycle.train.packing import pack, unpack
from upcycle.train.step import Outcome


@dataclass(frozen=True, slots=True)
class Fetched:
    """An Outcome as numbers."""

    means: dict[str, Any]  # a number for the loss, else a list by layer: of numbers, of the load of lists
    norms: dict[str, float]
    stop: int
    choices: tuple[tuple[int, int], ...]

    @property
    def loss(self) -> float:
        """The cross entropy, mean over the batch's target tokens, nats."""
        return float(self.means["loss"])


def fetch(outcome: Outcome) -> Fetched:
    """Return an outcome as numbers, brought from the device in one transfer."""
    everything = {
        **{f"mean {name}": value for name, value in outcome.means.items()},
        **{f"norm {name}": value for name, value in outcome.norms.items()},
        "stop": outcome.stop,
    }
    numbers: dict[str, Any] = {
        name: value.tolist() for name, value in unpack(pack(everything).cpu(), everything).items()
    }
    return Fetched(
        {name: numbers[f"mean {name}"] for name in outcome.means},
        {name: numbers[f"norm {name}"] for name in outcome.norms},
        int(numbers["stop"][0]),
        outcome.choices,
    )


def describe(step: int, fetched: Fetched, rates: Mapping[str, float], layers: Sequence[int]) -> dict[str, Any]:
    """Return the line of a step, without its time and data; `layers` are the numbers of the layers with experts."""
    return {
        "step": step,
        "loss": fetched.loss,
        **{name: _mean(fetched.means.get(name)) for name in ROUTER_LOSSES},
        "lr": dict(rates),
        "grad_norm": fetched.norms,
        "layers": [_layer(fetched, place, number) for place, number in enumerate(layers)],
    }


def _layer(fetched: Fetched, place: int, number: int) -> dict[str, Any]:
    """Return the entry of one layer: its figures in the order of their rows, then its losses."""
    _, experts = fetched.choices[place]
    load = fetched.means["load"][place][:experts]
    known = {
        **{row.name: fetched.means[row.name][place] for row in rows_of("tokens", "loss")},
        "load": load,
        **measured("load", load),
    }
    names = [row.name for row in (*rows_of("tokens", "load"), *rows_of("loss"))]
    return {"layer": number, **{name: known[name] for name in names}}


def _mean(values: Sequence[float] | None) -> float | None:
    """Return the mean over layers; None for a dense model."""
    return math.fsum(values) / len(values) if values else None
