"""Carries out a recipe: its steps in order, but for those that are done; a listener is told what happens."""

from pathlib import Path
from typing import Any, Protocol

from upcycle import requests
from upcycle.errors import InputError, UpcycleError
from upcycle.pipeline.done import Done
from upcycle.pipeline.locate import BUILT_IN
from upcycle.pipeline.stages import Display, check_access, plan, run_shown
from upcycle.pipeline.steps import Recipe
from upcycle.pipeline.touched import names_read
from upcycle.requests.commands import command_of


class Skipped:
    """The result of a step that was done before and is not done again."""


SKIPPED = Skipped()

_FILES = (".txt", ".json", ".jsonl", ".gz", ".parquet", ".jinja", ".gguf")
"""Endings of what can only be a file here; a Hub id may have a full stop in it too."""


class Listener(Display, Protocol):
    """Is told what happens in a recipe; `upcycle.cli.recipes` prints it."""

    def begin(self, number: int, count: int, request: Any) -> None:
        """Step `number` of `count`, from 1, is about to begin."""

    def end(self, request: Any, result: Any) -> None:
        """The step is done; `result` is what `upcycle.run` returns for its request, or `SKIPPED`."""


def run(chain: Recipe, listener: Listener, done: Done | None = None) -> None:
    """Carry out every step of `chain`, but for those that `done` has.

    Raises UpcycleError when a verification fails, without starting the steps after it, and whatever a step raises, with
    a note on which step it was and how to go on.
    """
    for repository in filter(None, map(_published_to, chain.steps)):
        check_access(repository)  # now, and not when hours of work are done
    ended: list[int] = []
    for number, request in enumerate(chain.steps, 1):
        try:
            if done and done.has(request):
                listener.begin(number, len(chain.steps), request)
                listener.end(request, SKIPPED)
            else:
                _carry_out(chain, number, done.begin(request) if done else request, listener, done)
        except BaseException as error:
            if done:
                wrong = isinstance(error, InputError)  # then the same command would fail again
                subject = "fix the error and run the same recipe again: it" if wrong else "the same command"
                error.add_note(f"{subject} {_skipping(ended)}continues here")
            raise
        if done and done.keeps(request):
            ended.append(number)


def _published_to(request: Any) -> str | None:
    """The repository on the Hub that a step writes."""
    option = command_of(request).publishes
    return option and getattr(request, option)


def _carry_out(chain: Recipe, number: int, request: Any, listener: Listener, done: Done | None) -> None:
    """Do one step, and note that it is done."""
    command, after = command_of(request).name, len(chain.steps) - number
    step = f"{chain.name}: step {number} of {len(chain.steps)}, {command}"
    listener.begin(number, len(chain.steps), request)
    try:
        result = run_shown(request, listener)
    except BaseException as error:
        error.add_note(f"{step}, is not done")
        raise
    listener.end(request, result)
    rest = f"; {after} step{'s' * (after > 1)} after it did not run" if after else ""
    if not getattr(result, "passed", True):
        if done:
            done.forget(request)
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


def rehearse(chain: Recipe, listener: Listener, done: Done | None = None) -> None:
    """Tell `listener` every step without doing it; plan the conversions of models that are local directories.

    Writes nothing; the result of a conversion whose model is elsewhere is None, that of a step which `done` has, and
    which reads nothing that another step would write anew, is `SKIPPED`. Raises InputError for a conversion that would
    be refused, and for files that are neither there nor made by an earlier step.
    """
    anew: set[Path] = set()
    for number, request in enumerate(chain.steps, 1):
        listener.begin(number, len(chain.steps), request)
        read = {Path(said) for _, said in names_read(request)}
        if done and done.has(request) and not any(anew & {path, *path.parents} for path in read):
            listener.end(request, SKIPPED)
            continue
        try:
            _check_read(request, anew)
            if isinstance(request, requests.Conversion):
                here = request.model in BUILT_IN or Path(request.model).expanduser().is_dir()
                listener.end(request, plan(request) if here else None)
        except InputError as error:
            error.add_note(f"this is step {number} of {len(chain.steps)}, {command_of(request).name}")
            raise
        anew |= {Path(out) for out in [getattr(request, "out", None)] if out}


def _check_read(request: Any, made: set[Path]) -> None:
    """Raise InputError for what a step reads that is neither here, nor `made` by the steps before it, nor a Hub id."""
    from upcycle.hub.client import is_hub_id

    for _, said in names_read(request):
        path = Path(said).expanduser()
        elsewhere = path.suffix not in _FILES and is_hub_id(said.partition(":")[0])  # org/name:config of a data set
        if not (said in BUILT_IN or path.exists() or elsewhere or made & {path, *path.parents}):
            raise InputError("no such file or directory", where=said, hint="the steps before it do not make it either")
