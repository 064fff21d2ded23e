"""One optimizer step: forward and backward over its micro-batches, losses scaled to be means over the whole batch.

Shapes: L layers, E experts.
"""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy

from upcycle.moe.routing import Recorder
from upcycle.train.batches import IGNORED, TARGETS, Batch
from upcycle.train.model import Trainee
from upcycle.train.objective import RouterObjective, RouterStatistics, load_of
from upcycle.train.optimizer import Optimizer


@dataclass(frozen=True)
class Outcome:
    """What one step's forward and backward passes gave, over all processes; on the device until `upcycle.train.metrics`
    fetches it in one transfer.
    """

    loss: Tensor  # language modelling, mean over the batch's target tokens
    routers: RouterStatistics | None  # means over the batch; None for a dense model
    norms: dict[str, Tensor]  # of the gradient, total and by group
    stop: Tensor  # the largest signal that any process was sent


@dataclass
class Stepper:
    """Runs a model forwards and backwards."""

    accelerator: Accelerator
    trainee: Trainee
    optimizer: Optimizer
    objective: RouterObjective
    model: Any = field(init=False)  # as `accelerate` wraps it
    recorder: Recorder = field(init=False)
    shares: tuple[float, ...] = ()  # of each layer's experts, that a token uses

    def __post_init__(self) -> None:
        """Hook the routers and wrap the model for several processes."""
        self.recorder = Recorder(self.trainee.routers)
        # torch's wrapper adds gradients up in their own data type; master gradients are summed here, in float32.
        self._sums_here = self.trainee.dtype != torch.float32
        with warnings.catch_warnings():  # accelerate asks torch by names that it is giving up
            warnings.simplefilter("ignore", FutureWarning)
            self.model = self.trainee.model if self._sums_here else self.accelerator.prepare(self.trainee.model)
        self._one_row = "flash" in str(self.trainee.model.config._attn_implementation)

    def forward_backward(self, batch: Batch, signal: int = 0) -> Outcome:
        """Leave the gradients of the whole batch's loss in the optimizer, and return the loss and what the routers did.

        `signal` is what this process was sent, to be agreed upon.
        """
        load_LE = self._whole_load(batch)
        count, processes = len(batch.micro_batches), self.accelerator.num_processes
        sums: list[Tensor] = []
        statistics: RouterStatistics | None = None
        for number, micro_batch in enumerate(batch.micro_batches, 1):
            with nullcontext() if number == count else self.accelerator.no_sync(self.model):
                with self.recorder.recording() as seen:
                    loss = self.loss(micro_batch) * (processes / max(batch.targets, 1))
                total = loss
                if seen:
                    self.shares = tuple(one.chosen_TK.shape[-1] / one.logits_TE.shape[-1] for one in seen)
                    if self.objective.needs_load and load_LE is None:
                        load_LE = self._mean(load_of(seen))
                    router_loss, statistics = self.objective(seen, len(micro_batch["input_ids"]), load_LE)
                    total = loss + router_loss / count
                self.accelerator.backward(total)
            self.optimizer.collect()
            sums.append(_flat(loss.detach() * count, statistics))
        flat, stop = self._agreed(torch.stack(sums).mean(0), signal)
        return Outcome(flat[0], statistics and _unflat(flat[1:], statistics.experts), self.optimizer.norms(), stop)

    def loss(self, micro_batch: dict[str, Tensor], *, model: Any = None) -> Tensor:
        """Return the cross entropy summed over the tokens that a micro-batch asks for, in nats.

        The sum is float64 where there is such a thing: in float32 it would lose the sixth digit of its mean.
        """
        inputs = self._on_device(micro_batch)
        next_T = inputs.pop(TARGETS).flatten()
        logits_TV = (self.model if model is None else model)(**inputs, use_cache=False).logits.flatten(0, 1)
        losses_T = cross_entropy(logits_TV.float(), next_T, ignore_index=IGNORED, reduction="none")
        return losses_T.sum(dtype=_wide(losses_T))

    def _on_device(self, micro_batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a micro-batch where the model is, in the form that its attention keeps documents apart in."""
        inputs = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in micro_batch.items()}
        if not self._one_row:
            return inputs
        # flash attention finds documents in a single row only
        positions_S = torch.arange(inputs["input_ids"].shape[1], device=self.accelerator.device)
        inputs.setdefault("position_ids", positions_S.expand_as(inputs["input_ids"]))
        return {name: value.reshape(1, -1) for name, value in inputs.items()}

    def _whole_load(self, batch: Batch) -> Tensor | None:
        """The load `(L, E)` of the whole batch, by a first pass without gradients where it has several micro-batches.

        With one there is no need: the load is known before the loss is computed.
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
        return self._mean(torch.stack(loads).mean(0))

    def _agreed(self, flat: Tensor, signal: int) -> tuple[Tensor, Tensor]:
        """Return the mean of `flat` and the largest signal over all processes, and average gradients if it is due."""
        stop = flat.new_full((1,), float(signal))
        if self.accelerator.num_processes > 1:
            if self._sums_here:
                for gradient in self.optimizer.gradients():
                    torch.distributed.all_reduce(gradient)
                    gradient /= self.accelerator.num_processes
            flat = self._mean(flat)
            torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
        return flat, stop

    def _mean(self, value: Tensor) -> Tensor:
        mean: Tensor = self.accelerator.reduce(value, "mean")
        return mean


def _flat(loss: Tensor, statistics: RouterStatistics | None) -> Tensor:
    """Everything that is averaged, in one tensor; float64, where there is such a thing, adds no error of its own."""
    parts = [loss.view(1)]
    if statistics:
        parts += [statistics.losses_3L.flatten(), statistics.entropy_L, statistics.load_LE.flatten()]
    return torch.cat([part.to(_wide(loss)) for part in parts])


def _unflat(flat: Tensor, experts: tuple[int, ...]) -> RouterStatistics:
    layers = len(experts)
    losses, entropy, load = flat.split([3 * layers, layers, layers * max(experts)])
    return RouterStatistics(losses.view(3, layers), entropy, load.view(layers, -1), experts)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
