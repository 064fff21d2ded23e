"""Computes the gradients of one optimizer step: forward and backward over its micro-batches, on all processes.

Losses are scaled to be means over the whole batch. Shapes: L layers, E experts, T tokens, S tokens of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from upcycle.moe.loss import summed_cross_entropy
from upcycle.moe.routing import Recorder, Routing
from upcycle.train.batches import TARGETS, Batch
from upcycle.train.model import Trainee
from upcycle.train.objective import RouterObjective, load_of
from upcycle.train.optimizer import Optimizer
from upcycle.train.packing import pack, unpack
from upcycle.train.parallel.shard import Shared
from upcycle.train.parallel.world import World


@dataclass(frozen=True)
class Outcome:
    """What the forward and backward passes of a step gave, over all processes.

    All of it is on the device until `upcycle.train.watch.metrics` fetches it in one transfer.
    """

    means: dict[str, Tensor]  # over the batch: "loss" of its target tokens, and the figures of routers, if there are
    norms: dict[str, Tensor]  # of the gradient, total and by group
    stop: Tensor  # the largest signal that any process was sent
    choices: tuple[tuple[int, int], ...] = ()  # of each router: how many experts a token uses, of how many


@dataclass
class Stepper:
    """Runs a model forwards and backwards."""

    world: World
    trainee: Trainee
    optimizer: Optimizer
    objective: RouterObjective
    shared: Shared = field(init=False)
    recorder: Recorder = field(init=False)

    def __post_init__(self) -> None:
        """Hook the routers and share the model among the processes."""
        self.recorder = Recorder(self.trainee.routers)
        self.shared = Shared(self.trainee.model, self.world, self.trainee.dtype)
        self._one_row = "flash" in str(self.trainee.model.config._attn_implementation)

    def forward_backward(self, batch: Batch, signal: int = 0) -> Outcome:
        """Leave the gradients of the whole batch's loss in the optimizer, and return the loss and what the routers did.

        `signal` is what this process was sent; the processes agree on the largest.
        """
        load_LE = self._whole_load(batch)
        parts: list[dict[str, Tensor]] = []
        seen: Sequence[Routing] = ()
        for number, micro_batch in enumerate(batch.micro_batches, 1):
            with self.shared.accumulating(last=number == len(batch.micro_batches)):
                total, means, seen = self._losses(micro_batch, batch, load_LE)
                total.backward()
            self.optimizer.collect()
            parts.append(means)
        self.shared.average(self.optimizer.gradients())
        flat_N = self.world.mean(torch.stack([pack(part) for part in parts]).mean(0))
        choices = tuple((routing.chosen_TK.shape[-1], routing.logits_TE.shape[-1]) for routing in seen)
        return Outcome(unpack(flat_N, parts[-1]), self.optimizer.norms(), self.world.largest(signal), choices)

    def _losses(
        self, micro_batch: dict[str, Tensor], batch: Batch, load_LE: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], Sequence[Routing]]:
        """Return the part of the batch's loss that a micro-batch is, its means by name, and what its routers decided.

        Averaged over micro-batches and processes, the means are those of the batch.
        """
        count = len(batch.micro_batches)
        with self.recorder.recording() as seen:
            loss = self.loss(micro_batch) * (self.world.size / max(batch.targets, 1))
        if not seen:
            return loss, {"loss": loss.detach() * count}, seen
        if self.objective.needs_load and load_LE is None:
            load_LE = self.world.mean(load_of(seen))
        router_loss, figures = self.objective(seen, len(micro_batch["input_ids"]), load_LE)
        return loss + router_loss / count, {"loss": loss.detach() * count, **figures}, seen

    def loss(self, micro_batch: dict[str, Tensor], *, model: Any = None) -> Tensor:
        """Return the cross entropy summed over the tokens that a micro-batch asks for, in nats."""
        inputs = self._on_device(micro_batch)
        next_T = inputs.pop(TARGETS).flatten()
        logits_TV = (self.shared.model if model is None else model)(**inputs, use_cache=False).logits.flatten(0, 1)
        return summed_cross_entropy(logits_TV, next_T)

    def _on_device(self, micro_batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a micro-batch where the model is, in the form that its attention keeps documents apart in."""
        device = self.world.device
        inputs = {name: value.to(device, non_blocking=True) for name, value in micro_batch.items()}
        if not self._one_row:
            return inputs
        # flash attention finds documents in a single row only
        positions_S = torch.arange(inputs["input_ids"].shape[1], device=device)
        inputs.setdefault("position_ids", positions_S.expand_as(inputs["input_ids"]))
        return {name: value.reshape(1, -1) for name, value in inputs.items()}

    def _whole_load(self, batch: Batch) -> Tensor | None:
        """Return the load `(L, E)` of the whole batch, by a first pass without gradients, where losses need it.

        With a single micro-batch there is no need of that: the load is known before the loss is computed.
        """
        if not self.objective.needs_load or len(batch.micro_batches) == 1 or not self.trainee.routers:
            return None
        loads = []
        with torch.no_grad():
            for micro_batch in batch.micro_batches:
                with self.recorder.recording() as seen:
                    inputs = self._on_device(micro_batch)
                    del inputs[TARGETS]
                    self.trainee.model(**inputs, use_cache=False, logits_to_keep=1)
                loads.append(load_of(seen))
        return self.world.mean(torch.stack(loads).mean(0))
