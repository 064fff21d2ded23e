"""The commands as functions: each finds its models and makes one call into a wing."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from upcycle import requests
from upcycle.errors import InputError, UnreachableError
from upcycle.pipeline.locate import locate, locate_base, located_here
from upcycle.plan.execute import Advance
from upcycle.requests.commands import command_of
from upcycle.requests.request import Request, Result

if TYPE_CHECKING:
    from upcycle.adapt.attach import Attached
    from upcycle.adapt.merge import Merged
    from upcycle.convert.convert import Draft
    from upcycle.plan.report import Report
    from upcycle.train.loop import Trained
    from upcycle.train.watch.observer import TrainingObserver

Start = Callable[[int], Advance]
"""Called with the bytes that there are to do; returns what is told the bytes as they are done."""


class Display(Protocol):
    """Shows how the work of a command goes on; `upcycle.cli.progress` has the one for terminals."""

    def progress(self, what: str) -> AbstractContextManager[Start]:
        """Return a context for work that is counted in bytes."""

    def training(self) -> "AbstractContextManager[TrainingObserver]":
        """Return a context for a training, which yields its observer."""

    def write(self, piece: str) -> None:
        """Show a piece of text that a model has written."""


def run(request: Request[Result]) -> Result:
    """Carry out a request and return what its command makes: for `Merge` a `Merged`, for `Verify` a `Report`.

    Raises what the command's own function raises: InputError for what is wrong with the request or the input.
    """
    done: Result = command_of(request).load()(request)
    return done


def run_shown(request: Request[Result], display: Display) -> Result:
    """As `run`, and `display` shows how the work goes on."""
    command = command_of(request)
    function: Callable[..., Result] = command.load()
    if command.reports == "bytes":
        with display.progress(command.doing) as start:
            return function(request, start)
    if command.reports == "steps":
        with display.training() as observer:
            return function(request, observer)
    return function(request, display.write) if command.reports == "text" else function(request)


def plan(request: requests.Conversion) -> "Draft":
    """Return what a conversion would write; see `upcycle.build.builder.build_plan` for what it raises.

    Of a model on the Hub only the headers are read.
    """
    from upcycle.checkpoint.reader import open_checkpoint
    from upcycle.convert.convert import draft
    from upcycle.hub.client import remote

    if request.allow_pickle or located_here(request.model):
        directory = locate(request.model, allow_pickle=request.allow_pickle)
        return draft(open_checkpoint(directory), request)
    return draft(open_checkpoint(remote(request.model)), request)


def convert(request: requests.Convert, start: Start = lambda _: lambda _: None) -> "Draft":
    """Convert a dense checkpoint, or only plan it for a dry run; see `upcycle.convert.convert.convert`.

    With `stream_to` it goes to the Hub, and an `upcycle.pipeline.stream.Streamed` is returned. What the plan refuses is
    refused before anything is downloaded.
    """
    from upcycle.convert.convert import convert as carry_out
    from upcycle.convert.convert import rehearse

    if request.stream_to is not None:
        check_access(request.stream_to)
    if located_here(request.model) is None:
        plan(request)
    directory = locate(request.model, allow_pickle=request.allow_pickle)
    if request.stream_to is not None:  # the Hub's client shows bars of its own
        from upcycle.pipeline.stream import stream

        return stream(directory, request)
    return rehearse(directory, request) if request.dry_run else carry_out(directory, request, start)


def verify(request: requests.Verify, start: Start = lambda _: lambda _: None) -> "Report":
    """Hold a mixture of experts against its dense model; see `upcycle.convert.verify.verify`."""
    from upcycle.convert.verify import verify as carry_out

    dense = locate(request.dense, allow_pickle=request.allow_pickle)
    return carry_out(dense, Path(request.moe).expanduser(), request, start)


def generate(request: requests.Generate, show: Callable[[str], None] = lambda _: None) -> str:
    """Return what a model writes; `show` gets it piece by piece. See `upcycle.use.generate.generate`."""
    from upcycle.use.generate import generate as carry_out

    directory = locate(request.model)
    return carry_out(directory, request, show, base=locate_base(directory, request.base))


def attach(request: requests.Attach) -> "Attached":
    """Give a dense model adapter experts; see `upcycle.adapt.attach.attach`."""
    from upcycle.adapt.attach import attach as carry_out

    base = locate(request.model, allow_pickle=request.allow_pickle)
    return carry_out(base, request, [locate(lora) for lora in request.from_lora])


def merge(request: requests.Merge, start: Start = lambda _: lambda _: None) -> "Merged":
    """Write what a model with adapter experts computes as a plain checkpoint; see `upcycle.adapt.merge.merge`."""
    from upcycle.adapt.merge import merge as carry_out
    from upcycle.adapt.merge import rehearse

    adapter = locate(request.adapter)
    base = locate_base(adapter, request.base, allow_pickle=request.allow_pickle)
    if base is None:
        raise InputError("is no adapter", where=adapter, expected="what `upcycle attach` or `upcycle train` wrote")
    return rehearse(adapter, base, request) if request.dry_run else carry_out(adapter, base, request, start)


def train(request: requests.Train, observer: "TrainingObserver | None" = None) -> "Trained":
    """Continue training a model; see `upcycle.train.loop.train`."""
    from upcycle.train.loop import train as carry_out

    directory = locate(request.model)
    return carry_out(directory, request, observer or Silent(), base=locate_base(directory, request.base))


def check_access(repository: str) -> None:
    """Raise InputError when there is no token to write to the Hub with; warn of a Hub that cannot be asked now."""
    from upcycle.hub.target import Target

    try:
        Target.of(repository)
    except UnreachableError as error:
        logging.getLogger("upcycle").warning("%s; that is tried again when it is needed", error)


class Silent:
    """Observes a training and shows nothing."""

    def begin(self, total_steps: int, done: int) -> None:
        """As `TrainingObserver`."""

    def step(self, metrics: dict[str, Any]) -> None:
        """As `TrainingObserver`."""

    def note(self, text: str) -> None:
        """As `TrainingObserver`."""
