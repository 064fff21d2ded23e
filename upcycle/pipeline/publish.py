"""Pushes a model or adapter: checks its weights against their class or base model, draws pictures, writes the card."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from upcycle import requests
from upcycle.checkpoint.place import CARD_FILE
from upcycle.errors import InputError
from upcycle.pipeline.locate import check_experts

if TYPE_CHECKING:
    from upcycle.checkpoint.reader import Checkpoint
    from upcycle.hub.contents import Contents
    from upcycle.hub.push import Pushed, WriteCard

DRAWN = ("losses.png", "load-over-steps.png")
"""Pictures of a training that are drawn for the card if `upcycle plot` has drawn none."""


def push(request: requests.Push) -> "Pushed":
    """Check a directory and publish it; see `upcycle.hub.push.push` for what it raises."""
    from upcycle.hub.contents import read_contents
    from upcycle.hub.push import open_target
    from upcycle.hub.push import push as carry_out

    contents = read_contents(Path(request.model).expanduser(), request.include)
    opened = open_target(request.repo, private=request.private)  # before transformers is met, which takes seconds
    contents = _fitting_adapter(contents, request) if contents.kind == "adapter" else _fitting_model(contents, request)
    with _pictured(contents) as shown:
        return carry_out(opened, shown, request, card_writer(shown, request.base) if request.card else None)


def card_writer(contents: "Contents", base: str | None) -> "WriteCard":
    """Return what writes the card of `contents`; `base` is the Hub id of its dense model, where the record has none."""
    from upcycle.card import card, facts_of
    from upcycle.hub.client import read_card
    from upcycle.hub.contents import PICTURES
    from upcycle.pipeline.history import recipe_of

    pictures = [item.name for item in contents.items if item.name.startswith(f"{PICTURES}/")]
    facts = facts_of(contents.directory, base=base, pictures=pictures)
    if facts.base:
        facts = replace(facts, base_card=read_card(facts.base))

    def write(repo: str, before: str | None, replaced: str | None) -> tuple[bytes, list[str]]:
        text = card(facts, repo, before, recipe_of(facts, repo.rpartition("/")[2]))
        return text.encode(), list(_notes(text, replaced))

    return write


def _notes(card: str, replaced: str | None) -> Iterator[str]:
    """Yield what the owner of a card may not expect: `replaced` is the Hub's that a directory's takes the place of."""
    from upcycle.card import missing, outside

    with suppress(InputError):  # the replaced one has markers that do not fit
        if replaced is not None and outside(replaced) != outside(card):
            yield f"{CARD_FILE} of the directory takes the place of the Hub's card, which said something else"
    if missing(card):
        yield f"the card names no {' and no '.join(missing(card))}: a {CARD_FILE} with that at its head does"


def _fitting_model(contents: "Contents", request: requests.Push) -> "Contents":
    from upcycle.moe.fit import check_fit

    if request.base is not None:
        _on_the_hub(request.base, asked=True)
    check_fit(contents.directory, contents.shapes)
    return contents


def _fitting_adapter(contents: "Contents", request: requests.Push) -> "Contents":
    """Hold an adapter against its model on the Hub, that against the one here, and let it name the Hub's."""
    from upcycle.checkpoint.adapter import open_adapter
    from upcycle.checkpoint.reader import open_checkpoint
    from upcycle.hub.adapter_base import public_base, with_base

    public, adapter = public_base(contents, request.base), open_adapter(contents.directory)
    base = _on_the_hub(public, asked=request.base is not None)
    if base is None:
        return with_base(contents, public)
    here = Path(adapter.base).expanduser()
    if here.is_dir():
        adapter.check_base(here)
        _check_same(open_checkpoint(here), base, public)
    if adapter.has_experts:
        check_experts(contents.directory, base)
    return with_base(contents, public)


def _on_the_hub(model: str, *, asked: bool) -> "Checkpoint | None":
    """Return a model on the Hub, its headers; where only the adapter names it, it may be gated: then a warning, None.

    Raises InputError when it was `asked` for by --base and is not there.
    """
    from upcycle.checkpoint.reader import open_checkpoint
    from upcycle.hub.client import is_hub_id, remote

    if not is_hub_id(model):
        raise InputError("--base is no Hub id", found=model, expected="org/name, or org/name@revision")
    try:
        return open_checkpoint(remote(model))
    except InputError as error:
        if asked:
            raise InputError(
                f"--base names no model that can be read: {error}", hint="`upcycle push` takes dense models too"
            ) from None
        logging.getLogger("upcycle").warning("not held against its model: %s", error)
        return None


def _check_same(here: "Checkpoint", there: "Checkpoint", name: str) -> None:
    """Raise InputError when two models differ in their tensors' names, types or shapes."""
    one, other = (
        {name: (spec.dtype, spec.shape) for name, spec in checkpoint.tensors.items()} for checkpoint in (here, there)
    )
    differing = sorted({name for name, _ in one.items() ^ other.items()})
    if differing:
        raise InputError(
            f"{name} on the Hub is another model", where=here.directory, found=f"{len(differing)} tensors that differ",
            expected=f"{differing[0]} as it is here", hint="--base names the one that the adapter was made for",
        )  # fmt: skip


@contextmanager
def _pictured(contents: "Contents") -> Iterator["Contents"]:
    """Add pictures of a training that has its metrics beside it and no pictures yet."""
    from upcycle.checkpoint.place import METRICS_FILE
    from upcycle.hub.contents import PICTURES, Item

    names = {item.name for item in contents.items}
    if METRICS_FILE not in names or any(name.startswith(f"{PICTURES}/") for name in names):
        yield contents
        return
    from upcycle.analyze.plot import plot

    with TemporaryDirectory(prefix="upcycle-") as folder:
        metrics = Path(folder) / contents.directory.resolve().name
        metrics.mkdir()
        shutil.copyfile(contents.directory / METRICS_FILE, metrics / METRICS_FILE)
        try:
            drawn = plot(requests.Plot(metrics=str(metrics)))
        except InputError as error:
            logging.getLogger("upcycle").warning("%s: not drawn: %s", contents.directory / METRICS_FILE, error.what)
            drawn = []
        items = (Item(f"{PICTURES}/{path.name}", path.read_bytes()) for path in drawn if path.name in DRAWN)
        yield contents.with_items(*items)
