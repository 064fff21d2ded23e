"""What is done before a push: the model held against its class, an adapter against its base, and the card's parts."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from upcycle import recipe
from upcycle.errors import InputError, UnreachableError

if TYPE_CHECKING:
    from upcycle.ship.contents import Contents
    from upcycle.ship.push import Pushed, WriteCard

DRAWN = ("losses.png", "load-over-steps.png")
"""Pictures of a training that a card shows where `upcycle plot` has drawn none."""


def push(request: recipe.Push) -> "Pushed":
    """Check a directory and publish it; see `upcycle.ship.push.push` for what it raises."""
    from upcycle.ship.contents import read_contents
    from upcycle.ship.push import push as carry_out

    contents = read_contents(Path(request.model).expanduser(), request.include)
    contents = _fitting_adapter(contents, request) if contents.kind == "adapter" else _fitting_model(contents)
    with _pictured(contents) as shown:
        return carry_out(shown, request, card_writer(shown, request.base) if request.card else None)


def card_writer(contents: "Contents", base: str | None) -> "WriteCard":
    """Return what writes the card of `contents`; `base` is the Hub id of its dense model, where the record has none."""
    from upcycle.ship.card import card, facts_of
    from upcycle.ship.contents import PICTURES
    from upcycle.ship.hub import read_card

    pictures = [item.name for item in contents.items if item.name.startswith(f"{PICTURES}/")]
    facts = facts_of(contents.directory, base=base, pictures=pictures)
    if facts.base:
        facts = replace(facts, base_card=read_card(facts.base))
    return lambda repo, before: card(facts, repo, before).encode()


def _fitting_model(contents: "Contents") -> "Contents":
    from upcycle.ship.fit import check_fit

    check_fit(contents.directory, contents.shapes)
    return contents


def _fitting_adapter(contents: "Contents", request: recipe.Push) -> "Contents":
    """Hold an adapter against its model, here or on the Hub, and let it name that by its Hub id."""
    from upcycle.adapt.saved import open_saved
    from upcycle.checkpoint.adapter import open_adapter
    from upcycle.checkpoint.reader import open_checkpoint
    from upcycle.families.match import match
    from upcycle.families.table import FAMILIES
    from upcycle.ship.adapter_base import public_base, with_base
    from upcycle.ship.hub import remote

    public, adapter = public_base(contents, request.base), open_adapter(contents.directory)
    here = Path(adapter.base).expanduser()
    try:
        base = open_checkpoint(here if here.is_dir() else remote(public))
    except UnreachableError as error:
        raise UnreachableError(f"{contents.directory}: cannot be held against its model ({error})") from None
    except InputError as error:  # gated, or gone
        logging.getLogger("upcycle").warning("%s: not held against its model: %s", contents.directory, error)
        return with_base(contents, public)
    if here.is_dir():
        adapter.check_base(here)
    if adapter.has_experts and base.config.get("model_type") in FAMILIES:
        open_saved(contents.directory, match(base))
    return with_base(contents, public)


@contextmanager
def _pictured(contents: "Contents") -> Iterator["Contents"]:
    """Add pictures of a training whose figures are there, where nobody has drawn any."""
    from upcycle.ship.contents import METRICS_FILE, Item

    names = {item.name for item in contents.items}
    if METRICS_FILE not in names or any(name.startswith("plots/") for name in names):
        yield contents
        return
    from upcycle.analyze.plot import plot

    with TemporaryDirectory(prefix="upcycle-") as folder:
        metrics = Path(folder) / contents.directory.resolve().name
        metrics.mkdir()
        shutil.copyfile(contents.directory / METRICS_FILE, metrics / METRICS_FILE)
        drawn = plot(recipe.Plot(metrics=str(metrics)))
        items = (Item(f"plots/{path.name}", path.read_bytes()) for path in drawn if path.name in DRAWN)
        yield contents.with_items(*items)
