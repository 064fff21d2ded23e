"""Carrying out a recipe: its steps in order, told to an observer."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from upcycle import requests
from upcycle.errors import InputError, UpcycleError
from upcycle.pipeline import stages
from upcycle.pipeline.done import Done
from upcycle.pipeline.grammar import command_of
from upcycle.pipeline.steps import Recipe
from upcycle.pipeline.touched import names_read
from upcycle.plan.execute import Advance

if TYPE_CHECKING:
    from upcycle.train.watch.observer import TrainingObserver


class Skipped:
    """The result of a step that was done before and is not done again."""


SKIPPED = Skipped()


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
        """The step is done; `result` is what `upcycle.pipeline.stages.run` returns for its request, or `SKIPPED`."""


def run(chain: Recipe, observer: Observer, done: Done | None = None) -> None:
    """Carry out every step of `chain`, but for those that `done` has.

    Raises UpcycleError when a verification fails, without starting the steps after it, and whatever a step raises, with
    a note on which step it was and how to go on.
    """
    for repository in filter(None, map(_published_to, chain.steps)):
        stages.check_access(repository)  # now, and not when hours of work are done
    ended: list[int] = []
    for number, request in enumerate(chain.steps, 1):
        try:
            if done and done.has(request):
                observer.begin(number, len(chain.steps), request)
                observer.end(request, SKIPPED)
            else:
                _carry_out(chain, number, done.begin(request) if done else request, observer, done)
        except BaseException as error:
            if done:
                wrong = isinstance(error, InputError)  # then the same command would fail again
                subject = "run again with what is wrong put right, it" if wrong else "the same command"
                error.add_note(f"{subject} {_skipping(ended)}goes on from there")
            raise
        if done and done.keeps(request):
            ended.append(number)


def _published_to(request: Any) -> str | None:
    """The repository on the Hub that a step writes."""
    if isinstance(request, requests.Push):
        return request.repo
    return request.stream_to if isinstance(request, requests.Convert) else None


def _carry_out(chain: Recipe, number: int, request: Any, observer: Observer, done: Done | None) -> None:
    """Do one step, and note that it is done."""
    command, after = command_of(request), len(chain.steps) - number
    step = f"{chain.name}: step {number} of {len(chain.steps)}, {command}"
    observer.begin(number, len(chain.steps), request)
    try:
        result = ACTIONS[command](request, observer)
    except BaseException as error:
        error.add_note(f"{step}, is not done")
        raise
    observer.end(request, result)
    rest = f"; {after} step{'s' * (after > 1)} after it did not run" if after else ""
    if not getattr(result, "passed", True):
        raise UpcycleError(f"{step}, did not pass{rest}")
    if done:
        done.end(request, result)
    if after and getattr(result, "left", None):
        raise UpcycleError(f"{step}, waits for the other parts{rest}")


def _skipping(ended: list[int]) -> str:
    if not ended:
        return ""
    *most, last = map(str, ended)
    if not most:
        return f"skips step {last}, which is done, and "
    return f"skips steps {', '.join(most)} and {last}, which are done, and "


def rehearse(chain: Recipe, observer: Observer, done: Done | None = None) -> None:
    """Tell `observer` every step without doing it; plan the conversions of models that are local directories.

    Writes nothing; the result of a conversion whose model is elsewhere is None, that of a step which `done` has, and
    which reads nothing that another step would write anew, is `SKIPPED`. Raises InputError for a conversion that would
    be refused.
    """
    anew: set[Path] = set()
    for number, request in enumerate(chain.steps, 1):
        observer.begin(number, len(chain.steps), request)
        read = {Path(said) for _, said in names_read(request)}
        if done and done.has(request) and not any(anew & {path, *path.parents} for path in read):
            observer.end(request, SKIPPED)
            continue
        anew |= {Path(out) for out in [getattr(request, "out", None)] if out}
        if isinstance(request, requests.Conversion):
            here = request.model in stages.BUILT_IN or Path(request.model).expanduser().is_dir()
            observer.end(request, stages.plan(request) if here else None)


def _plan(request: requests.Plan, _observer: Observer) -> Any:
    return stages.plan(request)


def _convert(request: requests.Convert, observer: Observer) -> Any:
    if request.stream_to is not None:  # the Hub's client shows bars of its own
        return stages.convert(request)
    with observer.progress("writing") as start:
        return stages.convert(request, start)


def _verify(request: requests.Verify, observer: Observer) -> Any:
    with observer.progress("comparing") as start:
        return stages.verify(request, start)


def _generate(request: requests.Generate, observer: Observer) -> Any:
    return stages.generate(request, observer.write)


def _train(request: requests.Train, observer: Observer) -> Any:
    with observer.training() as panel:
        return stages.train(request, panel)


def _attach(request: requests.Attach, _observer: Observer) -> Any:
    return stages.attach(request)


def _merge(request: requests.Merge, observer: Observer) -> Any:
    with observer.progress("merging") as start:
        return stages.merge(request, start)


def _push(request: requests.Push, _observer: Observer) -> Any:
    return stages.push(request)


def _plot(request: requests.Plot, _observer: Observer) -> Any:
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
    "push": _push,
}
"""Command -> what carries out its request; the commands are those of `upcycle.pipeline.grammar`."""
