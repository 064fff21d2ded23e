"""Writes the lineage of a trained model: what it was made from, and the options, steps and losses of this training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import upcycle
from upcycle.checkpoint.lineage import LINEAGE_FILE, lineage_bytes
from upcycle.plan.receipt import Origin, as_text
from upcycle.requests import recorded
from upcycle.requests.train import Train
from upcycle.train.saved.progress import Progress
from upcycle.train.setup import Setup
from upcycle.train.watch.journal import Journal


def write_lineage(
    directory: Path, before: Sequence[dict[str, Any]], setup: Setup, progress: Progress, journal: Journal
) -> None:
    """Write the lineage of what is saved into `directory`: `before`, and the training so far."""
    entry = _entry(setup, progress, journal)
    (directory / LINEAGE_FILE).write_bytes(lineage_bytes([*before, entry]))


def _entry(setup: Setup, progress: Progress, journal: Journal) -> dict[str, Any]:
    """What is told of a training: no path, no time, and the losses as the command prints them at its end."""
    trainee = setup.trainee
    base = Origin.of(trainee.base or trainee.source, ())
    entry = {
        "made": "training",
        "recipe": _recipe(setup.request, trainee.source),
        "batch": setup.cut.batch,  # sequences of a step, of all processes
        "steps": progress.step,
        "tokens": progress.tokens,
        "loss": _ends(journal.losses),
        "eval_loss": _ends(journal.eval_losses),
        "versions": {
            "upcycle": upcycle.__version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    }
    # a directory's name is nothing to find the model by
    return {**entry, "source": {"name": base.name, "revision": base.revision}} if base.revision else entry


def _recipe(request: Train, source: Path) -> dict[str, Any]:
    recipe = recorded(request) | {"model": Origin.of(source, ()).name}
    for name in ("data", "eval_data"):
        recipe[name] = [_name(said) for said in recipe[name]]
    return recipe


def _name(source: str) -> str:
    """A file or directory by its last name; a data set on the Hub as it was given."""
    path = Path(source).expanduser()
    return as_text(path.resolve().name) if path.exists() else source


def _ends(losses: Sequence[float]) -> dict[str, float] | None:
    return {"first": losses[0], "last": losses[-1]} if losses else None
