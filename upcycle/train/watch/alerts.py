"""Alerts: finds trouble in the figures of a training (collapse, dead experts, spikes) and says it in a sentence.

Each kind of trouble is a class with `see(metrics)`, which gets the steps one by one as `metrics.jsonl` has them and
keeps no more than a window of them. A trouble is told once, and again only after it was over: the bound that ends it
lies below the one that begins it, so that a value which hovers at a bound does not tell its story over and over.
"""

from collections import deque
from collections.abc import Iterable
from math import exp, log
from statistics import median
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from upcycle.checkpoint.strict_json import is_finite_number
from upcycle.figures import bound_of
from upcycle.message import listed

Metrics = dict[str, Any]
"""One step, as a line of `metrics.jsonl`."""

WINDOW = 25
"""Steps over which a load is averaged. One batch of a few hundred tokens misses an expert by chance; 25 do not."""

MISPLACED, PLACED = 0.35, 0.30
"""Share of a layer's choices that an even load would send elsewhere, above which it is collapsing, and below which it
no longer is; 0 is even. With 8 experts of which each token uses 2 the most there can be is .75, and .35 means 60% on
two of them; with 4 experts the most is .5, and .35 means 85% on two. Unlike a bound on the busiest expert it needs no
top-k."""

MENDING = 0.02
"""A layer whose misplaced share has fallen by this much from the first half of the window to the second is on its way
back (the balance loss at work after a start from drawn routers) and not reported."""

DEAD, COLD, IDENTICAL = bound_of("dead"), bound_of("cold"), bound_of("cosine")
"""An expert dies below the first and lives again from the second on, as parts of an even share; from the third on,
as a cosine, experts are the same."""

STILL = 5
"""Steps without a gradient after which a router is dead. Identical experts give it none at the first step, and a
schedule that starts at zero leaves them identical for one more."""

ROUNDING = 1e-7
"""Share of the whole gradient's norm that is rounding: identical experts give a router 1e-9 to 1e-8, not always 0."""

HISTORY, ENOUGH = 50, 20
"""Steps that a median is taken of, and how many there must be."""

SPREAD = 1.4826
"""Standard deviation of normal noise, in units of its median absolute deviation."""

LEARNT = 100
"""Steps with a learning rate after which experts should no longer be identical. By then AdamW at 1e-5 can have moved
weights of .05 by 2%, which is a cosine of .9998; parameters in bf16 without float32 master weights round such steps
away."""

SHOWN = 8
"""Layers, and experts of a layer, that an alert names."""

RISES, RISEN = 3, 1.005
"""Evaluations in a row that are each worse than the one before, and how far above the best one the last must be: on a
plateau three rises in a row happen by chance."""

Key = TypeVar("Key")


class _Trouble(Protocol):
    """One kind of trouble."""

    def see(self, metrics: Metrics) -> list[str]:
        """Take in a step and return an alert for each trouble that begins with it."""


class Watch:
    """Sees every step of a run and says what goes wrong.

    It has no other state than what it has seen: fed the lines of a metrics file, it goes on where that run stopped.
    """

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._troubles: tuple[_Trouble, ...] = (
            _Imbalance(), _DeadRouter(), _IdenticalExperts(), _Spike("loss", 8, 1.05, _LOSS_SPIKE),
            _Spike("grad_norm", 6, 5.0, _GRADIENT_SPIKE), _RisingEvaluation(),
        )  # fmt: skip

    def see(self, metrics: Metrics) -> list[str]:
        """Return alerts on what begins with this step, one sentence each; mostly there are none."""
        return [alert for trouble in self._troubles for alert in trouble.see(metrics)]


class _Episodes(Generic[Key]):
    """Keeps which troubles are going on, so that each is told once."""

    def __init__(self) -> None:
        self._open: set[Key] = set()

    def begun(self, bad: Iterable[Key], over: Iterable[Key]) -> list[Key]:
        """Return the troubles of `bad` that were not going on before; those that are `over` may begin again."""
        new = [key for key in bad if key not in self._open]
        self._open.update(new)
        self._open.difference_update(over)
        return new


class _Imbalance:
    """Layers that collapse onto few experts, and experts that get next to nothing, by the mean load of a window."""

    def __init__(self) -> None:
        self._loads: dict[int, deque[NDArray[np.float64]]] = {}
        self._collapsing: _Episodes[int] = _Episodes()
        self._dead: _Episodes[tuple[int, int]] = _Episodes()

    def see(self, metrics: Metrics) -> list[str]:
        for layer in metrics.get("layers") or []:
            self._loads.setdefault(layer["layer"], deque(maxlen=WINDOW)).append(np.asarray(layer["load"], float))
        full = {layer: np.stack(loads) for layer, loads in self._loads.items() if len(loads) == WINDOW}
        return [*self._see_collapse(full), *self._see_dead(full)]

    def _see_collapse(self, full: dict[int, NDArray[np.float64]]) -> list[str]:
        shares = {layer: misplaced(load.mean(0)) for layer, load in full.items()}
        bad = [layer for layer, share in shares.items() if share > MISPLACED and not _is_mending(full[layer])]
        over = [layer for layer, share in shares.items() if share < PLACED]
        new = self._collapsing.begun(bad, over)
        if not new:
            return []
        worst = max(new, key=lambda layer: shares[layer])
        load = full[worst].mean(0)
        busy = load[load > 1 / len(load)]
        others = f" (and {_layers([layer for layer in new if layer != worst])})" if len(new) > 1 else ""
        return [
            f"layer {worst}{others} is collapsing: {len(busy)} of its {len(load)} experts got {busy.sum():.0%} of the "
            f"choices in the last {WINDOW} steps, an even share is {len(busy) / len(load):.0%}; raise --balance-coef"
        ]

    def _see_dead(self, full: dict[int, NDArray[np.float64]]) -> list[str]:
        bad, over = [], []
        for layer, loads in full.items():
            of_even = loads.mean(0) * loads.shape[1]
            bad += [(layer, int(expert)) for expert in np.flatnonzero(of_even < DEAD)]
            over += [(layer, int(expert)) for expert in np.flatnonzero(of_even >= COLD)]
        new = self._dead.begun(bad, over)
        if not new:
            return []
        return [
            f"dead: {_experts(new)}, each with under {DEAD:.0%} of an even share of the choices in the last {WINDOW} "
            "steps; raise --balance-coef"
        ]


class _DeadRouter:
    """Routers that get no gradient although they have a learning rate."""

    def __init__(self) -> None:
        self._still = 0
        self._episodes: _Episodes[str] = _Episodes()

    def see(self, metrics: Metrics) -> list[str]:
        norms = metrics.get("grad_norm") or {}
        router, total = _number(norms.get("router")), _number(norms.get("total"))
        if router is None or not _learns(metrics, "router"):
            return []
        self._still = self._still + 1 if router <= ROUNDING * (total or 0) else 0
        over = ["router"] if self._still == 0 else []
        if not self._episodes.begun(["router"] if self._still >= STILL else [], over):
            return []
        return [
            f"the routers do not learn: their gradient has been zero for {STILL} steps; experts that are identical and "
            "are not trained give them none (--train all), nor does top-k 1 where weights are made to sum to one"
        ]


class _IdenticalExperts:
    """Experts that have not moved apart."""

    def __init__(self) -> None:
        self._steps = 0
        self._episodes: _Episodes[int] = _Episodes()

    def see(self, metrics: Metrics) -> list[str]:
        self._steps += _learns(metrics, "experts")
        cosines = {layer["layer"]: _number(layer.get("cosine")) for layer in metrics.get("layers") or []}
        known = {layer: cosine for layer, cosine in cosines.items() if cosine is not None}
        same = [layer for layer, cosine in known.items() if cosine >= IDENTICAL and self._steps >= LEARNT]
        new = self._episodes.begun(same, [layer for layer, cosine in known.items() if cosine < IDENTICAL])
        if not new:
            return []
        return [
            f"the experts of {_layers(new)} are still identical after {self._steps} steps (cosine "
            f"{min(known[layer] for layer in new):.7f}); raise --lr or --expert-lr, or convert with --noise"
        ]


_LOSS_SPIKE = "the loss jumped to {value:.4g} at step {step}, {times:.3g} times the median of the last {count} steps"
_GRADIENT_SPIKE = (
    "the gradient norm jumped to {value:.3g} at step {step}, {times:.3g} times the median of the last {count} steps"
)


class _Spike:
    """A value far above what it was, measured against its running median and median absolute deviation.

    Both withstand up to half a window of outliers, so that a spike does not hide the next one; a level that stays is
    the median after half a window, and the trouble is over. Logarithms are compared, for gradient norms are skewed:
    of 100,000 draws that are log-normal with a deviation of .4, the usual bound of 3 would report hundreds.
    """

    def __init__(self, name: str, deviations: float, times: float, words: str) -> None:
        """Look for values of `name` above the median by so many deviations, and at least so many times as large."""
        self._name, self._deviations, self._least, self._words = name, deviations, log(times), words
        self._history: deque[float] = deque(maxlen=HISTORY)
        self._episodes: _Episodes[str] = _Episodes()

    def see(self, metrics: Metrics) -> list[str]:
        found = metrics.get(self._name)
        value = _number(found.get("total") if isinstance(found, dict) else found)
        if value is None or value <= 0:
            return []
        alerts = self._compare(value, metrics.get("step")) if len(self._history) >= ENOUGH else []
        self._history.append(log(value))
        return alerts

    def _compare(self, value: float, step: object) -> list[str]:
        middle = median(self._history)
        deviation = SPREAD * median(abs(one - middle) for one in self._history)
        above, bound = log(value) - middle, max(self._deviations * deviation, self._least)
        if not self._episodes.begun([self._name] if above > bound else [], [self._name] if above < bound / 2 else []):
            return []
        words = self._words.format(value=value, step=step, times=exp(above), count=len(self._history))
        return [f"{words}; if it does not come down again, lower --lr or raise --warmup-steps"]


class _RisingEvaluation:
    """A held-out loss that gets worse again and again: the model overfits, or diverges."""

    def __init__(self) -> None:
        self._last = self._best = float("inf")
        self._rises = 0
        self._episodes: _Episodes[str] = _Episodes()

    def see(self, metrics: Metrics) -> list[str]:
        value = _number(metrics.get("eval_loss"))
        if value is None:
            return []
        self._rises = self._rises + 1 if value > self._last else 0
        self._last, self._best = value, min(value, self._best)
        bad = self._rises >= RISES and value > RISEN * self._best
        if not self._episodes.begun(["eval"] if bad else [], ["eval"] if self._rises == 0 else []):
            return []
        return [
            f"the held-out loss has risen {self._rises} times in a row, to {value:.4g}; it was {self._best:.4g} at its "
            "best; stop, lower --lr, or train on more data"
        ]


def misplaced(load_E: NDArray[np.float64]) -> float:
    """Return the share of the choices that an even load would send elsewhere: 0 is even, 1 - K/E total collapse."""
    return float(np.clip(load_E - 1 / len(load_E), 0, None).sum())


def _is_mending(loads: NDArray[np.float64]) -> bool:
    half = len(loads) // 2
    return misplaced(loads[-half:].mean(0)) < misplaced(loads[:half].mean(0)) - MENDING


def _learns(metrics: Metrics, group: str) -> bool:
    return (_number((metrics.get("lr") or {}).get(group)) or 0) > 0


def _number(value: object) -> float | None:
    """Return a finite number as it is, anything else as None: a NaN stops a run, it is no trouble to watch."""
    return float(value) if is_finite_number(value) else None


def _layers(numbers: list[int]) -> str:
    return f"layer{'s' * (len(numbers) > 1)} {listed(numbers, SHOWN)}"


def _experts(pairs: list[tuple[int, int]]) -> str:
    """Name experts by layer: `experts 1, 4 of layer 3, expert 0 of layer 7`."""
    layers: dict[int, list[int]] = {}
    for layer, expert in pairs:
        layers.setdefault(layer, []).append(expert)
    each = (
        f"expert{'s' * (len(experts) > 1)} {listed(experts, SHOWN)} of layer {layer}"
        for layer, experts in layers.items()
    )
    return listed(each, SHOWN)
