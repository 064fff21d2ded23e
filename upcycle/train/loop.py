"""Trains a model: the loop over steps, and what it does when a step fails, a signal comes or a checkpoint is due.

A step is the same numbers whether it is computed by one process or several, in one micro-batch or many; a run that was
stopped and resumed is the run that was not. For that nothing is drawn from global state that a step did not seed, the
learning rate is a function of the step, and the place in the data is saved with the weights.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upcycle.checkpoint.lineage import lineage
from upcycle.errors import InputError, StagingError, UpcycleError
from upcycle.moe.measures import measured
from upcycle.requests.train import Train
from upcycle.train.batches import Batch
from upcycle.train.diagnose import find_nonfinite
from upcycle.train.interrupt import Interrupt
from upcycle.train.lineage import write_lineage
from upcycle.train.parallel.state import gathered
from upcycle.train.saved.directory import checkpoint_path
from upcycle.train.saved.manifest import read_manifest
from upcycle.train.saved.progress import DIRECTORY, Progress, seed_of, write_state
from upcycle.train.schedule import learning_rate_factor
from upcycle.train.setup import Setup, described, rates, set_up
from upcycle.train.step import Outcome
from upcycle.train.watch.journal import Journal
from upcycle.train.watch.metrics import Fetched, describe, fetch
from upcycle.train.watch.observer import TrainingObserver
from upcycle.train.watch.speed import Meter


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a training."""

    out: Path
    steps: int
    losses: tuple[float, ...]  # means over the first and the last tenth of the steps; none but on the main process
    eval_losses: tuple[float, ...]  # on held-out text, before, meanwhile and at the end


def train(source: Path, request: Train, observer: TrainingObserver, base: Path | None = None) -> Trained:
    """Train the model in `source` and write it to `request.out`; `observer` is told on the main process only.

    Where `source` is an adapter, `base` is the model that it belongs to, which is only read.
    Raises InputError for a model, text or directory that cannot be used, StagingError when a checkpoint cannot be
    written, UpcycleError when the loss is no longer a number. What is saved stays. SIGTERM and SIGINT have their effect
    after the step that is running, and its state is saved before.
    """
    with set_up(source, request, base) as setup, Interrupt() as interrupt, ExitStack() as stack:
        journal = stack.enter_context(Journal(setup.out, setup.progress.step, setup.world, observer))
        return _Loop(setup, journal, interrupt).run()


class _Loop:
    def __init__(self, setup: Setup, journal: Journal, interrupt: Interrupt) -> None:
        self.setup, self.journal, self.interrupt = setup, journal, interrupt
        self.request, self.world, self.trainee = setup.request, setup.world, setup.trainee
        self.progress = setup.progress
        self.saved = setup.progress.step
        self.before = lineage(setup.trainee.source) if setup.directory is not None else []
        self.layers = [router.layer for router in setup.trainee.routers]
        self.meter = Meter(setup.trainee, setup.request.seq_len, setup.world)

    def run(self) -> Trained:
        setup, last = self.setup, self.request.max_steps
        self._check_weights()
        self.journal.begin(last)
        self.journal.note(described(setup))
        if setup.evaluation and not self.progress.step:
            self._tell({"step": 0, "eval_loss": setup.evaluation(setup.stepper)})
        if self.progress.step < last:
            self._train(last)
        self._finish()
        return Trained(setup.out, last, self.journal.losses, self.journal.eval_losses)

    def _train(self, last: int) -> None:
        """Make the steps up to `last`; wrong text, or a signal while it is read, loses none of them."""
        batches = self.setup.batches()
        try:
            self.meter.restart()
            for batch in batches.until(lambda: self.world.alone and self.interrupt.number != 0):
                self._step(self.progress.step + 1, batch)
                if self.progress.step == last:
                    return
            self._give_way(self.interrupt.number)
        except InputError:
            if self.saved != self.progress.step:
                self._save()
            raise
        finally:
            batches.close()

    # -- a step --------------------------------------------------------------------------------------------------------

    def _step(self, step: int, batch: Batch) -> None:
        torch.manual_seed(seed_of(self.request.seed, step, self.world.rank))
        outcome = self.setup.stepper.forward_backward(batch, self.interrupt.number)
        fetched = fetch(outcome)
        self._refuse_nonfinite(step, batch, fetched)
        learning_rates = self._update(step, outcome)
        self.progress = Progress(step, self.progress.tokens + self._tokens, batch.state)
        self._report(step, batch, fetched, learning_rates)
        if step % self.request.save_every == 0 and step < self.request.max_steps:
            self._save()
        if fetched.stop or (self.interrupt.number and self.world.alone):
            self._give_way(fetched.stop or self.interrupt.number)

    def _refuse_nonfinite(self, step: int, batch: Batch, fetched: Fetched) -> None:
        """Raise UpcycleError that says where a NaN or infinity came from; the step has changed nothing yet."""
        total = fetched.norms["total"]
        if math.isfinite(fetched.loss) and math.isfinite(total):
            return

        def forward() -> None:
            for micro_batch in batch.micro_batches:
                self.setup.stepper.loss(micro_batch)

        cause = self.world.gather(find_nonfinite(self.trainee.model, forward))[0]
        what, value = ("the norm of the gradient", total) if math.isfinite(fetched.loss) else ("the loss", fetched.loss)
        raise UpcycleError(f"step {step}: {what} is {value}, from {cause}; {self._kept()}")

    def _update(self, step: int, outcome: Outcome) -> dict[str, float]:
        """Clip the gradients, move the weights, and return the learning rates of the step by group."""
        request, optimizer = self.request, self.setup.optimizer
        if request.clip:
            optimizer.clip(request.clip, outcome.norms["total"])
        factor = learning_rate_factor(
            step - 1, schedule=request.schedule, warmup=request.warmup, total=request.max_steps,
            floor=request.min_lr, decay=request.decay, start=request.start_step,
        )  # fmt: skip
        optimizer.step(factor)
        optimizer.zero_grad()
        return {name: rate * factor for name, rate in rates(request).items()}

    def _report(self, step: int, batch: Batch, fetched: Fetched, learning_rates: dict[str, float]) -> None:
        """Tell the step, with what is measured only now and then."""
        line = {
            **describe(step, fetched, learning_rates, self.layers),
            "tokens": self.progress.tokens,
            "epoch": min(batch.epochs),
            **self.meter.lap(self._tokens, [chosen / experts for chosen, experts in fetched.choices]),
        }
        if step % self.request.eval_every == 0 or step == self.request.max_steps:
            self._evaluate(line)
        self._tell(line)

    def _evaluate(self, line: dict[str, Any]) -> None:
        """Add the held-out loss, and how alike the experts are where they are trained as a whole."""
        setup = self.setup
        self._check_weights()
        if setup.evaluation:
            line["eval_loss"] = setup.evaluation(setup.stepper)
        if self.world.is_main and self.request.train != "lora" and self.trainee.base is None:
            for figures, router in zip(line["layers"], self.trainee.routers, strict=True):
                figures.update(measured("weights", router.experts))
        self.meter.restart()

    def _tell(self, line: dict[str, Any]) -> None:
        """Tell a step; raise StagingError where the disk is full, UpcycleError where the held-out loss is no number."""
        if not math.isfinite(line.get("eval_loss", 0.0)):
            raise UpcycleError(f"step {line['step']}: the held-out loss is {line['eval_loss']}; {self._kept()}")
        try:
            self.journal.add(line)
        except StagingError as error:
            raise StagingError(f"{error}; {self._kept()}") from error

    @property
    def _tokens(self) -> int:
        """Tokens of a step."""
        return self.setup.cut.batch * self.request.seq_len

    def _check_weights(self) -> None:
        """Raise UpcycleError when a weight is NaN or infinite: such a model is neither measured nor saved."""
        for name, parameter in self.trainee.model.named_parameters():
            if not parameter.isfinite().all():
                raise UpcycleError(f"step {self.progress.step}: the weight {name} is not finite; {self._kept()}")

    def _kept(self) -> str:
        if not self.saved:
            return "there is no checkpoint yet"
        return f"checkpoint-{self.saved:06d} is the last good checkpoint"

    # -- what stays ----------------------------------------------------------------------------------------------------

    def _save(self, *, final: bool = False) -> None:
        """Write a checkpoint of what all processes have, on the main one."""
        setup, request = self.setup, self.request
        self._check_weights()
        weights = gathered(self.trainee.state())
        moments = gathered(setup.optimizer.state_tensors())
        if setup.directory is not None:
            self.journal.make_durable()

            def write(directory: Path) -> None:
                self.trainee.save(directory, weights, merged=final and not request.lora_keep)
                write_state(directory, moments, self.progress)
                write_lineage(directory, self.before, setup, self.progress, self.journal)

            path = setup.directory.save(self.progress.step, write, keep=request.keep)
            self.journal.note(f"{path.name} is saved")
        self.world.wait()
        self.saved = self.progress.step
        self.meter.restart()

    def _give_way(self, number: int) -> None:
        """Save a checkpoint if steps are unsaved, then let Ctrl-C or SIGTERM end the program."""
        if self.saved != self.progress.step:
            self._save()
        try:
            self.interrupt.take_effect(number)
        except BaseException as stop:
            if self.saved:
                stop.add_note(f"step {self.saved} is saved in {self.setup.out}, --resume goes on from there")
            raise

    def _finish(self) -> None:
        """Save the last step, and put its model at the top of OUT."""
        setup = self.setup
        self._save(final=True)
        if setup.directory is not None:
            checkpoint = checkpoint_path(setup.out, self.progress.step)
            setup.directory.finish(
                checkpoint, [name for name in read_manifest(checkpoint).files if not name.startswith(f"{DIRECTORY}/")]
            )
