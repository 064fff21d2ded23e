"""Writes and reads the state of a training in its checkpoint: the optimizer, the place in the data, the step.

    state/optimizer.safetensors    moments and float32 master weights
    state/data.*                   how far every source has been read, and what was read ahead
    state/step.json                steps and tokens so far

The learning rate follows from the step, and so do random numbers: each step seeds them from (seed, step, rank).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from upcycle.checkpoint.digest import seed_from
from upcycle.checkpoint.strict_json import read_object
from upcycle.text.state import StreamState
from upcycle.train.optimizer import Optimizer
from upcycle.train.saved.tensors import load_tensors, save_tensors

DIRECTORY = "state"
_OPTIMIZER_FILE, _STEP_FILE = "optimizer.safetensors", "step.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is."""

    step: int
    tokens: int
    stream: StreamState | None  # None: nothing was read


def write_state(checkpoint: Path, optimizer: Mapping[str, Tensor], progress: Progress) -> None:
    """Write the state of a run into its checkpoint; `optimizer` is all of `Optimizer.state_tensors`."""
    directory = checkpoint / DIRECTORY
    directory.mkdir(exist_ok=True)
    save_tensors(directory / _OPTIMIZER_FILE, optimizer)
    if progress.stream is not None:
        progress.stream.to_files(directory)
    (directory / _STEP_FILE).write_text(json.dumps({"step": progress.step, "tokens": progress.tokens}) + "\n")


def read_state(checkpoint: Path, optimizer: Optimizer) -> Progress:
    """Bring `optimizer` to where it was, and return how far the run was; raise CheckpointError when it does not fit."""
    directory = checkpoint / DIRECTORY
    optimizer.load_state_tensors(load_tensors(directory / _OPTIMIZER_FILE))
    said = read_object(directory / _STEP_FILE)
    return Progress(said["step"], said["tokens"], StreamState.from_files(directory))


def seed_of(seed: int, step: int, rank: int) -> int:
    """Return the seed of what a process draws in a step (dropout), 63 bits."""
    return seed_from(f"{seed}/{step}/{rank}")
