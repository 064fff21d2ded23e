"""How one model lies on several processes; today each has all of it, and gradients are averaged."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn

from upcycle.train.parallel.world import World


class Shared:
    """A model that all processes train, each on its own sequences."""

    def __init__(self, model: nn.Module, world: World, dtype: torch.dtype) -> None:
        """Share `model`, whose parameters are of `dtype`; `self.model` is what the forward pass runs.

        torch's wrapper averages gradients in their own data type. Below float32 they are summed in float32 by the
        optimizer's masters first, so the model stays unwrapped and `average` does it.
        """
        self.world = world
        self._wraps = dtype == torch.float32
        with warnings.catch_warnings():  # accelerate asks torch by names that it is giving up
            warnings.simplefilter("ignore", FutureWarning)
            self.model: Any = world.accelerator.prepare(model) if self._wraps else model

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of a micro-batch: gradients are averaged in the backward pass of the last one only."""
        return nullcontext() if last else self.world.delay_sync(self.model)

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Average over the processes what the backward pass did not, in place."""
        if self._wraps or self.world.alone:
            return
        for gradient in gradients:
            distributed.all_reduce(gradient)
            gradient /= self.world.size
