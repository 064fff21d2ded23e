"""Carrying out a recipe: its steps in order, told to an observer."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from upcycle import recipe
from upcycle.errors import UpcycleError
from upcycle.pipeline import stages
from upcycle.pipeline.grammar import command_of
from upcycle.pipeline.steps import Recipe
from upcycle.plan.execute import Advance

if TYPE_CHECKING:
    from upcycle.train.loop import Observer as TrainingObserver


class Observer(Protocol):
    """Who is told what happens; `upcycle.cli.run` prints it."""

    def begin(self, number: int, count: int, request: Any) -> None:
        """Step `number` of `count`, from 1, is about to begin."""

    def progress(self, what: str) -> AbstractContextManager[Callable[[int], Advance]]:
        """Return a context that yields `start(total_bytes)`, which returns what is told the bytes as they are done."""

    def training(self) -> "AbstractContextManager[TrainingObserver]":
        """Return a context that yields whoever watches a training."""

    def write(self, piece: str) -> None:
        """A model has written `piece`."""

    def end(self, request: Any, result: Any) -> None:
        """The step is done; `result` is what `upcycle.pipeline.stages.run` returns for its request."""


def run(chain: Recipe, observer: Observer) -> None:
    """Carry out every step of `chain`.

    Raises UpcycleError when a verification fails, without starting the steps after it, and whatever a step raises.
    """
    for number, request in enumerate(chain.steps, 1):
        command = command_of(request)
        observer.begin(number, len(chain.steps), request)
        result = ACTIONS[command](request, observer)
        observer.end(request, result)
        after = len(chain.steps) - number
        rest = f"; {after} step{'s' * (after > 1)} after it did not run" if after else ""
        step = f"{chain.name}: step {number} of {len(chain.steps)}, {command}"
        if not getattr(result, "passed", True):
            raise UpcycleError(f"{step}, did not pass{rest}")
        if after and getattr(result, "left", None):
            raise UpcycleError(f"{step}, waits for the other parts{rest}")


def rehearse(chain: Recipe, observer: Observer) -> None:
    """Tell `observer` every step without doing it; plan the conversions of models that are local directories.

    Writes nothing; the result of a conversion whose model is elsewhere is None. Raises InputError for a conversion
    that would be refused.
    """
    for number, request in enumerate(chain.steps, 1):
        observer.begin(number, len(chain.steps), request)
        if isinstance(request, recipe.Conversion):
            here = request.model in stages.BUILT_IN or Path(request.model).expanduser().is_dir()
            observer.end(request, stages.plan(request) if here else None)


def _plan(request: recipe.Plan, _observer: Observer) -> Any:
    return stages.plan(request)


def _convert(request: recipe.Convert, observer: Observer) -> Any:
    with observer.progress("writing") as start:
        return stages.convert(request, start)


def _verify(request: recipe.Verify, observer: Observer) -> Any:
    with observer.progress("comparing") as start:
        return stages.verify(request, start)


def _generate(request: recipe.Generate, observer: Observer) -> Any:
    return stages.generate(request, observer.write)


def _train(request: recipe.Train, observer: Observer) -> Any:
    with observer.training() as panel:
        return stages.train(request, panel)


def _attach(request: recipe.Attach, _observer: Observer) -> Any:
    return stages.attach(request)


def _merge(request: recipe.Merge, observer: Observer) -> Any:
    with observer.progress("merging") as start:
        return stages.merge(request, start)


def _plot(request: recipe.Plot, _observer: Observer) -> Any:
    return stages.plot(request)


ACTIONS: dict[str, Callable[[Any, Observer], Any]] = {
    "plan": _plan,
    "convert": _convert,
    "verify": _verify,
    "attach": _attach,
    "train": _train,
    "merge": _merge,
    "plot": _plot,
    "generate": _generate,
}
"""Command -> what carries out its request; the commands are those of `upcycle.pipeline.grammar`."""
