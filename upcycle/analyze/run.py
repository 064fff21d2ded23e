"""One training as arrays, no longer than a picture can show.

Shapes: P points, L layers, E experts.
"""

from dataclasses import dataclass

import numpy as np

from upcycle.analyze.buckets import Floats


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
class Run:
    """One training."""

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
