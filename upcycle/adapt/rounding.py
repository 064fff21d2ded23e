"""How far rounding alone moves the logits of a model with an adapter: what a right merge of it may differ by.

A merge rounds and sums in another order than the adapter does. Most adapters turn that into 1e-6 of the largest logit;
those with large updates of the attention turn it into 1e-5 to 6e-4, and so do two ways of computing the adapter itself
(its formulas written out, its layers in float64). So each adapter's own figure is measured: every parameter is moved by
up to one unit in its last place, and the logits are computed again. Of 64 adapters, right merges differed by 2.5 times
that figure at most. Shapes: T tokens, V vocabulary.
"""

from typing import Any

import torch
from torch import Generator, Tensor

from upcycle.moe.reread import logits

TOLERANCE = 1e-5
"""Difference of a logit, relative to the largest, that float32's order of summation may make in any merge."""

FACTOR = 4
"""Times its own rounding that a merge may differ from the adapter."""

MOST = 1e-3
"""Relative difference that no rounding excuses: an adapter that is moved further cannot be told from a wrong one."""

DRAWS = 3
"""Times that the parameters are moved; the largest difference counts."""

LAST_PLACE = 2**-23
"""One unit in the last place of a float32, relative to the value."""

CHUNK = 2**22
"""Values moved at a time."""


def own_rounding(model: Any, ids_T: Tensor, logits_TV: Tensor) -> float:
    """Return the largest difference that rounding makes to a logit, relative to the largest of `logits_TV`.

    `logits_TV` are those of `model` in float32 on `ids_T`. The model's parameters stay moved.
    """
    generator, largest, before_TV = Generator().manual_seed(0), 0.0, logits_TV
    for _ in range(DRAWS):
        _move(model, generator)
        after_TV = logits(model, ids_T)
        largest = max(largest, float((after_TV - before_TV).abs().max()))
        before_TV = after_TV
    return largest / max(float(logits_TV.abs().max()), 1e-30)


def tolerance(rounding: float) -> float:
    """Return the relative difference up to which a merge is right, given the adapter's own rounding."""
    return min(max(TOLERANCE, FACTOR * rounding), MOST)


@torch.no_grad()
def _move(model: Any, generator: Generator) -> None:
    for parameter in model.parameters():
        for values in parameter.view(-1).split(CHUNK):
            values.mul_(1 + (2 * torch.rand(values.shape, generator=generator) - 1) * LAST_PLACE)
