"""Reads a training's `metrics.jsonl`: every line checked, and as many points kept as a picture can show.

Shapes: P points, L layers, E experts.
"""

import json
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from upcycle.analyze.buckets import Buckets, Floats
from upcycle.checkpoint.place import METRICS_FILE
from upcycle.errors import InputError
from upcycle.figures import PER_LAYER, ROUTER_LOSSES

SCALARS = ("loss", *ROUTER_LOSSES, "tokens_per_second", "mfu")
GROUPED = ("lr", "grad_norm")
OF_LAYERS = tuple(row.name for row in PER_LAYER if row.title)

CURVE_POINTS, LOAD_POINTS = 1000, 240
"""Stretches that are kept at most; a picture is about as many pixels wide."""

END = 25
"""Last steps whose mean is the load at the end."""

Shape = tuple[tuple[int, int], ...]
"""The number of each layer and how many experts it has."""

log = logging.getLogger("upcycle")


@dataclass(frozen=True)
class Curve:
    """One figure over the steps `(P,)`; NaN where it was not measured."""

    step: Floats
    mean: Floats
    low: Floats
    high: Floats

    @property
    def known(self) -> bool:
        """Whether it was measured at all."""
        return not bool(np.isnan(self.mean).all())


@dataclass(frozen=True)
class History:
    """One training as arrays, no longer than a picture can show."""

    label: str
    steps: int
    every: int  # steps of a point of a curve
    load_every: int  # steps of a point of the loads
    curves: dict[str, Curve]  # `loss`, `lr.router`, `grad_norm.total` ...
    layers: tuple[int, ...]
    layer_curves: dict[str, Floats]  # (P, L)
    load_steps: Floats
    loads: tuple[Floats, ...]  # per layer (P, E), shares of the choices
    last_loads: tuple[Floats, ...]  # per layer (E,), mean of the last steps
    evaluations: tuple[Floats, Floats]  # steps and losses
    alerts: tuple[int, ...]  # steps that raised some


def find_metrics(given: str) -> Path:
    """Return the metrics file that is given by itself or by its directory; raise InputError when there is none."""
    path = Path(given).expanduser()
    path = path / METRICS_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError("no such file", where=path, expected=f"a {METRICS_FILE}, or a directory that holds one")
    return path


def read_history(path: Path, label: str) -> History:
    """Read a metrics file in one pass, in memory that does not grow with it.

    A last line that was cut off is left out, with a note. Raises InputError, with file and line, for anything else that
    is not a step, for steps that do not increase, and for layers that change.
    """
    reader = _Reader()
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            reader.take(json.loads(line, parse_constant=_refuse))
        except _WrongError as error:
            raise InputError(str(error), where=where, found=error.found, expected=error.expected) from None
        except (ValueError, RecursionError, OverflowError) as error:
            raise InputError(f"not a step of a training ({str(error)[:120]})", where=where) from None
    if not reader.steps:
        raise InputError("holds no steps", where=path)
    return reader.history(label)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line with its number; the last one only where it is whole."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n") or _is_whole(line):
                    yield number, _decoded(line, f"{path}:{number}")
                else:
                    log.warning("%s:%d: the line was cut off and is left out", path, number)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path) from None


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} of the line is not UTF-8", where=where) from None


class _WrongError(Exception):
    """What is wrong with a line."""

    def __init__(self, what: str, found: object = None, expected: object = None) -> None:
        super().__init__(what)
        self.found, self.expected = found, expected


class _Reader:
    """Takes step by step; the first one says which figures and layers there are."""

    def __init__(self) -> None:
        self.steps, self._last = 0, -1.0
        self._end: deque[Floats] = deque(maxlen=END)
        self._evaluations: list[tuple[float, float]] = []
        self._alerts: list[int] = []

    def _begin(self, first: dict[str, Any]) -> None:
        layers = _layers(first)
        self._grouped = [(name, group) for name in GROUPED for group in _object(first.get(name) or {}, name)]
        self._shape = _shape(layers, [_load(layer) for layer in layers])
        width = 1 + len(SCALARS) + len(self._grouped) + len(OF_LAYERS) * len(layers)
        self._figures = Buckets(width, CURVE_POINTS)
        self._loads = Buckets(1 + sum(experts for _, experts in self._shape), LOAD_POINTS)

    def take(self, metrics: Any) -> None:
        step = self._step(_object(metrics, "the line"))
        evaluated = _number(metrics, "eval_loss")
        if evaluated == evaluated:
            self._evaluations.append((step, evaluated))
            if "loss" not in metrics:  # measured before the first step
                return
        if not self.steps:
            self._begin(metrics)
        self.steps += 1
        if metrics.get("alerts"):
            self._alerts.append(int(step))
        self._add(step, metrics)

    def _add(self, step: float, metrics: dict[str, Any]) -> None:
        layers = _layers(metrics)
        loads = [_load(layer) for layer in layers]
        shape = _shape(layers, loads)
        if shape != self._shape:
            raise _WrongError("the layers change", _words(shape), _words(self._shape))
        groups = {name: _object(metrics.get(name) or {}, name) for name in GROUPED}
        row = [step, *(_number(metrics, name) for name in SCALARS)]
        row += [_number(groups[name], group) for name, group in self._grouped]
        row += [_number(layer, name) for name in OF_LAYERS for layer in layers]
        self._figures.add(np.array(row))
        load_row = np.concatenate([[step], *loads])
        self._loads.add(load_row)
        self._end.append(load_row[1:])

    def _step(self, metrics: dict[str, Any]) -> float:
        step = _number(metrics, "step")
        if not step > self._last:
            expected = "a whole number" if self._last < 0 else f"one after {self._last:.0f}"
            raise _WrongError("step is out of order", repr(metrics.get("step")), expected)
        self._last = step
        return step

    def history(self, label: str) -> History:
        names = [*SCALARS, *(f"{name}.{group}" for name, group in self._grouped)]
        mean, low, high = self._figures.mean, self._figures.low, self._figures.high
        first, count = 1 + len(names), len(self._shape)
        loads, end = self._loads.mean, np.mean(self._end, axis=0)
        ends = np.cumsum([0, *(experts for _, experts in self._shape)])
        return History(
            label=label, steps=self.steps, every=self._figures.every, load_every=self._loads.every,
            curves={
                name: Curve(mean[:, 0], mean[:, at], low[:, at], high[:, at]) for at, name in enumerate(names, 1)
            },
            layers=tuple(layer for layer, _ in self._shape),
            layer_curves={
                name: mean[:, first + at * count : first + (at + 1) * count] for at, name in enumerate(OF_LAYERS)
            },
            load_steps=loads[:, 0], loads=tuple(loads[:, 1 + start : 1 + stop] for start, stop in pairwise(ends)),
            last_loads=tuple(end[start:stop] for start, stop in pairwise(ends)),
            evaluations=(np.array([at for at, _ in self._evaluations]), np.array([v for _, v in self._evaluations])),
            alerts=tuple(self._alerts),
        )  # fmt: skip


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongError(f"{what} is of the wrong kind", type(value).__name__, "an object")
    return value


def _layers(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    layers = metrics.get("layers") or []
    if not isinstance(layers, list):
        raise _WrongError("layers is of the wrong kind", type(layers).__name__, "a list")
    return [_object(layer, "a layer") for layer in layers]


def _shape(layers: list[dict[str, Any]], loads: list[Floats]) -> Shape:
    for layer in layers:
        if type(layer.get("layer")) is not int:
            raise _WrongError("layer is of the wrong kind", layer.get("layer"), "the number of the layer")
    return tuple((layer["layer"], len(load)) for layer, load in zip(layers, loads, strict=True))


def _load(layer: dict[str, Any]) -> Floats:
    """What a layer says of its experts' load."""
    given = layer.get("load")
    try:
        load = np.asarray(given if isinstance(given, list) else None)
    except ValueError:  # lists of several lengths
        load = np.asarray(None)
    if load.dtype.kind not in "if" or load.ndim != 1 or not (load.size and load.min() >= 0 and load.max() <= 1.001):
        expected = "shares of 0 to 1, one per expert"
        raise _WrongError(f"load of layer {layer.get('layer')} is wrong", str(given)[:60], expected)
    return load.astype(np.float64)


def _words(shape: Shape) -> str:
    first = f", from layer {shape[0][0]}" if shape else ""
    return f"{len(shape)} layers with {sum(experts for _, experts in shape)} experts{first}"


def _number(values: dict[str, Any], name: str) -> float:
    """A number, or NaN where there is none."""
    value = values.get(name)
    if value is None:
        return float("nan")
    if type(value) not in (int, float) or abs(value) == float("inf"):
        raise _WrongError(f"{name} is of the wrong kind", repr(value)[:60], "a finite number or null")
    return float(value)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
