"""The loss on text that is not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from upcycle.text.pack import Block
from upcycle.train.batches import as_tensors, target_count
from upcycle.train.step import Stepper


@dataclass(frozen=True)
class Evaluation:
    """Sequences of held-out text, and how many of them a process takes at a time."""

    blocks: Sequence[Block]
    size: int

    def __call__(self, stepper: Stepper) -> float:
        """Return the mean cross entropy of the target tokens of all sequences, which the processes share."""
        world, model = stepper.world, stepper.trainee.model
        own = self.blocks[world.rank :: world.size]
        total = 0.0
        model.eval()
        with torch.no_grad():
            for start in range(0, len(own), self.size):
                total += float(stepper.loss(as_tensors(own[start : start + self.size]), model=model))
        model.train()
        return world.sum(total) / max(target_count(self.blocks), 1)
