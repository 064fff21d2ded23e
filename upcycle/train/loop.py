"""Continued training: the one loop.

A step is the same numbers whether it is computed by one process or several, in one micro-batch or many; a run that was
stopped and resumed is the run that was not. For that nothing is drawn from global state that a step did not seed, the
learning rate is a function of the step, and the place in the data is saved with the weights.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from accelerate.utils import gather_object

from upcycle.checkpoint.lineage import lineage
from upcycle.errors import InputError, StagingError, UpcycleError
from upcycle.requests.train import Train
from upcycle.train.batches import Batch
from upcycle.train.diagnose import find_nonfinite
from upcycle.train.directory import checkpoint_path
from upcycle.train.interrupt import Interrupt
from upcycle.train.journal import Journal
from upcycle.train.lineage import write_lineage
from upcycle.train.manifest import read_manifest
from upcycle.train.metrics import Fetched, Meter, describe, expert_cosines, fetch
from upcycle.train.schedule import learning_rate_factor
from upcycle.train.setup import Setup, described, rates, set_up
from upcycle.train.state import DIRECTORY, Progress, seed_of, write_state


class Observer(Protocol):
    """Who is shown what happens."""

    def begin(self, total_steps: int, done: int) -> None:
        """Training begins, `done` steps of `total_steps` having been made before."""

    def step(self, metrics: dict[str, Any]) -> None:
        """A step is done; `metrics` is its line in `metrics.jsonl`."""

    def note(self, text: str) -> None:
        """Something is to be told: an alert, a checkpoint."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of it."""

    out: Path
    steps: int
    losses: tuple[float, ...]  # means over the first and the last tenth of the steps; none but on the main process
    eval_losses: tuple[float, ...]  # on held-out text, before, meanwhile and at the end


def train(source: Path, request: Train, observer: Observer, base: Path | None = None) -> Trained:
    """Train the model in `source` and write it to `request.out`; `observer` is told on the main process only.

    Where `source` is an adapter, `base` is the model that it belongs to, which is only read.
    Raises InputError for a model, text or directory that cannot be used, StagingError when a checkpoint cannot be
    written, UpcycleError when the loss is no longer a number. What is saved stays. SIGTERM and SIGINT have their effect
    after the step that is running, and its state is saved before.
    """
    with set_up(source, request, base) as setup, Interrupt() as interrupt, ExitStack() as stack:
        journal = stack.enter_context(Journal(setup.out, setup.progress.step, setup.accelerator, observer))
        return _Loop(setup, journal, interrupt).run()


class _Loop:
    def __init__(self, setup: Setup, journal: Journal, interrupt: Interrupt) -> None:
        self.setup, self.journal, self.interrupt = setup, journal, interrupt
        self.progress = setup.progress
        self.saved = setup.progress.step
        self.before = lineage(setup.trainee.source) if setup.directory is not None else []
        self.layers = [router.layer for router in setup.trainee.routers]
        self.meter = Meter(setup.trainee, setup.request.seq_len, setup.accelerator)

    def run(self) -> Trained:
        setup, last = self.setup, self.setup.request.max_steps
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
            for batch in batches.until(lambda: self.setup.alone and self.interrupt.number != 0):
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

    def _step(self, step: int, batch: Batch) -> None:
        setup, request = self.setup, self.setup.request
        torch.manual_seed(seed_of(request.seed, step, setup.accelerator.process_index))
        outcome = setup.stepper.forward_backward(batch, self.interrupt.number)
        fetched = fetch(outcome)
        if not (math.isfinite(fetched.loss) and math.isfinite(fetched.norms["total"])):
            self._stop(step, batch, fetched)
        if request.clip:
            setup.optimizer.clip(request.clip, outcome.norms["total"])
        factor = self._factor(step)
        setup.optimizer.step(factor)
        setup.optimizer.zero_grad()
        tokens = setup.cut.batch * request.seq_len
        self.progress = Progress(step, self.progress.tokens + tokens, batch.state)
        line = {
            **describe(step, fetched, {name: rate * factor for name, rate in rates(request).items()}, self.layers),
            "tokens": self.progress.tokens,
            "epoch": min(batch.epochs),
            **self.meter.lap(tokens, setup.stepper.shares),
        }
        self._report(step, line)
        if step % request.save_every == 0 and step < request.max_steps:
            self._save()
        if fetched.stop or (self.interrupt.number and setup.alone):
            self._give_way(fetched.stop or self.interrupt.number)

    def _factor(self, step: int) -> float:
        request = self.setup.request
        return learning_rate_factor(
            step - 1, schedule=request.schedule, warmup=request.warmup, total=request.max_steps,
            floor=request.min_lr, decay=request.decay, start=request.start_step,
        )  # fmt: skip

    def _report(self, step: int, line: dict[str, Any]) -> None:
        """Add what is measured only now and then, and tell the step."""
        setup = self.setup
        if step % setup.request.eval_every == 0 or step == setup.request.max_steps:
            self._check_weights()
            if setup.evaluation:
                line["eval_loss"] = setup.evaluation(setup.stepper)
            whole = setup.request.train != "lora" and setup.trainee.base is None
            if setup.accelerator.is_main_process and whole:
                for figures, cosine in zip(line["layers"], expert_cosines(setup.trainee.routers), strict=True):
                    figures["cosine"] = cosine
            self.meter.restart()
        self._tell(line)

    def _tell(self, line: dict[str, Any]) -> None:
        """Tell a step; raise StagingError where the disk is full, UpcycleError where the held-out loss is no number."""
        if not math.isfinite(line.get("eval_loss", 0.0)):
            raise UpcycleError(f"step {line['step']}: the held-out loss is {line['eval_loss']}; {self._kept()}")
        try:
            self.journal.add(line)
        except StagingError as error:
            raise StagingError(f"{error}; {self._kept()}") from error

    def _check_weights(self) -> None:
        """Raise UpcycleError when a weight is NaN or infinite: such a model is neither measured nor saved."""
        for name, parameter in self.setup.trainee.model.named_parameters():
            if not parameter.isfinite().all():
                raise UpcycleError(f"step {self.progress.step}: the weight {name} is not finite; {self._kept()}")

    def _kept(self) -> str:
        if not self.saved:
            return "there is no checkpoint yet"
        return f"checkpoint-{self.saved:06d} is the last good checkpoint"

    def _stop(self, step: int, batch: Batch, fetched: Fetched) -> NoReturn:
        """Say where the NaN or infinity came from; nothing was changed by this step."""
        setup = self.setup

        def forward() -> None:
            for micro_batch in batch.micro_batches:
                setup.stepper.loss(micro_batch)

        causes = gather_object([find_nonfinite(setup.trainee.model, forward)])
        what = "the loss" if not math.isfinite(fetched.loss) else "the norm of the gradient"
        value = fetched.loss if not math.isfinite(fetched.loss) else fetched.norms["total"]
        raise UpcycleError(f"step {step}: {what} is {value}, from {causes[0]}; {self._kept()}")

    def _save(self, *, final: bool = False) -> None:
        setup = self.setup
        self._check_weights()
        if setup.directory is not None:
            self.journal.make_durable()

            def write(directory: Path) -> None:
                setup.trainee.save(directory, merged=final and not setup.request.lora_keep)
                write_state(directory, setup.optimizer, self.progress)
                write_lineage(directory, self.before, setup, self.progress, self.journal)

            path = setup.directory.save(self.progress.step, write, keep=setup.request.keep)
            self.journal.note(f"{path.name} is saved")
        setup.accelerator.wait_for_everyone()
        self.saved = self.progress.step
        self.meter.restart()

    def _give_way(self, number: int) -> None:
        """Save, and let the signal have its effect."""
        if self.saved != self.progress.step:
            self._save()
        try:
            self.interrupt.take_effect(number)
        except BaseException as stop:
            if self.saved:
                stop.add_note(f"step {self.saved} is saved in {self.setup.out}, --resume goes on from there")
            raise

    def _finish(self) -> None:
        setup = self.setup
        self._save(final=True)
        if setup.directory is not None:
            checkpoint = checkpoint_path(setup.out, self.progress.step)
            setup.directory.finish(
                checkpoint, [name for name in read_manifest(checkpoint).files if not name.startswith(f"{DIRECTORY}/")]
            )
