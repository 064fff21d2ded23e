"""The commands as functions: find the model, then one call into a wing."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import upcycle
from upcycle import requests
from upcycle.errors import InputError, UnreachableError
from upcycle.plan.execute import Advance

if TYPE_CHECKING:
    from upcycle.adapt.attach import Attached
    from upcycle.adapt.merge import Merged
    from upcycle.convert.convert import Draft
    from upcycle.hub.push import Pushed
    from upcycle.plan.report import Report
    from upcycle.train.loop import Trained
    from upcycle.train.watch.observer import TrainingObserver


BUILT_IN = {"demo:tiny": Path(upcycle.__file__).parent / "data" / "tiny"}
"""Models that come with upcycle: a llama of a million parameters that has read the King James Bible."""


def locate(model: str, *, allow_pickle: bool = False) -> Path:
    """Return the directory of a model given as a directory, a `.gguf` file, a Hub id or a built-in name.

    A GGUF file is dequantised into a cache, a Hub id downloaded, and with `allow_pickle` a pickled checkpoint read as
    tensors into the cache. Raises InputError when there is nothing there.
    """
    directory = _local(model) or _download(model, allow_pickle)
    if allow_pickle:
        from upcycle.foreign.pickle import unpickled

        return unpickled(directory)
    return directory


def _local(model: str) -> Path | None:
    """The directory of what is on this machine; None for what must be a Hub id."""
    try:
        path = BUILT_IN.get(model) or Path(model).expanduser()
        if path.is_dir():
            return path
    except (OSError, RuntimeError) as error:  # a name that is too long, the home of nobody
        raise InputError(f"no such directory ({error})", where=model[:200]) from None
    if path.suffix == ".gguf":
        from upcycle.foreign.gguf import dequantised

        return dequantised(path)
    if path.exists():
        raise InputError("is not a model", where=path, expected="a directory, a .gguf file or a Hub id")
    from upcycle.hub.client import is_hub_id

    if not is_hub_id(model):
        raise InputError("no such directory", where=model, expected="a directory, a .gguf file or a Hub id")
    return None


def _download(model: str, allow_pickle: bool) -> Path:
    from upcycle.hub.client import download

    return download(model, pickle=allow_pickle)


def _located(adapter: Path, base: str | None, *, allow_pickle: bool = False) -> Path | None:
    """The directory of the model that an adapter belongs to, named by `base` or by itself; None for what is no adapter.

    Raises InputError when it is not there, or is another model than the adapter was made for.
    """
    from upcycle.build.adapter_experts import open_experts
    from upcycle.checkpoint.adapter import is_adapter, open_adapter
    from upcycle.checkpoint.reader import open_checkpoint
    from upcycle.families.match import match
    from upcycle.families.pairs import DENSE

    if not is_adapter(adapter):
        if base is not None:
            raise InputError("--base is for adapters, and this is none", where=adapter)
        return None
    opened = open_adapter(adapter)
    opened.check_kind()
    try:
        found = locate(base or opened.base, allow_pickle=allow_pickle)
        dense = open_checkpoint(found)
    except InputError as error:
        if base is not None:
            raise
        hint = "--base names the directory or Hub id where it is"
        raise InputError(f"the model of this adapter is not to be had ({error})", where=adapter, hint=hint) from None
    opened.check_base(found)
    if opened.has_experts and dense.config.get("model_type") in DENSE:
        open_experts(adapter, match(dense))
    return found


def plan(request: requests.Conversion) -> "Draft":
    """Return what a conversion would write; see `upcycle.build.builder.build_plan` for what it raises.

    Of a model on the Hub only the headers are read.
    """
    from upcycle.checkpoint.reader import open_checkpoint
    from upcycle.convert.convert import draft
    from upcycle.hub.client import remote

    if request.allow_pickle or _local(request.model):
        directory = locate(request.model, allow_pickle=request.allow_pickle)
        return draft(open_checkpoint(directory), request)
    return draft(open_checkpoint(remote(request.model)), request)


def convert(request: requests.Convert, start: Callable[[int], Advance] = lambda _: lambda _: None) -> "Draft":
    """Convert a dense checkpoint, or only plan it for a dry run; see `upcycle.convert.convert.convert`.

    With `stream_to` it goes to the Hub, and what is returned is an `upcycle.pipeline.stream.Streamed`. What the plan
    refuses is refused before anything is downloaded.
    """
    from upcycle.convert.convert import convert as carry_out
    from upcycle.convert.convert import rehearse

    if request.stream_to is not None:
        check_access(request.stream_to)
    if _local(request.model) is None:
        plan(request)
    directory = locate(request.model, allow_pickle=request.allow_pickle)
    if request.stream_to is not None:
        from upcycle.pipeline.stream import stream

        return stream(directory, request)
    return rehearse(directory, request) if request.dry_run else carry_out(directory, request, start)


def verify(request: requests.Verify, start: Callable[[int], Advance] = lambda _: lambda _: None) -> "Report":
    """Hold a mixture of experts against its dense model; see `upcycle.convert.verify.verify`."""
    from upcycle.convert.verify import verify as carry_out

    dense = locate(request.dense, allow_pickle=request.allow_pickle)
    return carry_out(dense, Path(request.moe).expanduser(), request, start)


def generate(request: requests.Generate, show: Callable[[str], None] = lambda _: None) -> str:
    """Return what a model writes; `show` gets it piece by piece. See `upcycle.use.generate.generate`."""
    from upcycle.use.generate import generate as carry_out

    directory = locate(request.model)
    return carry_out(directory, request, show, base=_located(directory, request.base))


def attach(request: requests.Attach) -> "Attached":
    """Give a dense model adapter experts; see `upcycle.adapt.attach.attach`."""
    from upcycle.adapt.attach import attach as carry_out

    base = locate(request.model, allow_pickle=request.allow_pickle)
    return carry_out(base, request, [locate(lora) for lora in request.from_lora])


def merge(request: requests.Merge, start: Callable[[int], Advance] = lambda _: lambda _: None) -> "Merged":
    """Write what a model with adapter experts computes as a plain checkpoint; see `upcycle.adapt.merge.merge`."""
    from upcycle.adapt.merge import merge as carry_out
    from upcycle.adapt.merge import rehearse

    adapter = locate(request.adapter)
    base = _located(adapter, request.base, allow_pickle=request.allow_pickle)
    if base is None:
        raise InputError("is no adapter", where=adapter, expected="what `upcycle attach` or `upcycle train` wrote")
    return rehearse(adapter, base, request) if request.dry_run else carry_out(adapter, base, request, start)


def train(request: requests.Train, observer: "TrainingObserver | None" = None) -> "Trained":
    """Continue training a model; see `upcycle.train.loop.train`."""
    from upcycle.train.loop import train as carry_out

    directory = locate(request.model)
    return carry_out(directory, request, observer or _Silent(), base=_located(directory, request.base))


def plot(request: requests.Plot) -> list[Path]:
    """Draw the curves of a training; see `upcycle.analyze.plot.plot`."""
    from upcycle.analyze.plot import plot as carry_out

    return carry_out(request)


def push(request: requests.Push) -> "Pushed":
    """Publish a model or an adapter on the Hub; see `upcycle.pipeline.publish.push`."""
    from upcycle.pipeline.publish import push as carry_out

    return carry_out(request)


def check_access(repository: str) -> None:
    """Raise InputError when there is no token to write to the Hub with; warn of a Hub that cannot be asked now."""
    from upcycle.hub.target import Target

    try:
        Target.of(repository)
    except UnreachableError as error:
        logging.getLogger("upcycle").warning("%s; that is tried again when it is needed", error)


class _Silent:
    """Watches a training and says nothing."""

    def begin(self, total_steps: int, done: int) -> None: ...

    def step(self, metrics: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


@overload
def run(request: requests.Convert | requests.Plan) -> "Draft": ...
@overload
def run(request: requests.Verify) -> "Report": ...
@overload
def run(request: requests.Generate) -> str: ...
@overload
def run(request: requests.Attach) -> "Attached": ...
@overload
def run(request: requests.Merge) -> "Merged": ...
@overload
def run(request: requests.Train) -> "Trained": ...
@overload
def run(request: requests.Plot) -> list[Path]: ...
@overload
def run(request: requests.Push) -> "Pushed": ...
def run(request: Any) -> Any:
    """Carry out a request.

    Return a Draft (of plan and convert), a Report (of verify), text (of generate), an Attached, a Trained, a Merged, a
    Pushed, or paths (of plot).

    Raises what the command's own function raises: InputError for what is wrong with the request or the input.
    """
    return STAGES[type(request)](request)


STAGES: dict[type[Any], Callable[[Any], Any]] = {
    requests.Plan: plan,
    requests.Convert: convert,
    requests.Verify: verify,
    requests.Generate: generate,
    requests.Attach: attach,
    requests.Train: train,
    requests.Merge: merge,
    requests.Plot: plot,
    requests.Push: push,
}
"""Request -> what carries it out."""
