"""Trainings of a few seconds: a small mixture of experts on real text, and what stops them."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults import FORKS, preload
from upcycle.pipeline import stages
from upcycle.requests import Train
from upcycle.train.watch.observer import TrainingObserver

SMALL: dict[str, Any] = {
    "seq_len": 64, "batch_size": 4, "max_steps": 10, "lr": 3e-4, "warmup_steps": 4, "importance_coef": 0.01,
    "save_every": 100,
}  # fmt: skip

TIMING = ("tokens_per_second", "mfu")

for module in ("accelerate", "peft", "upcycle.train.loop", "upcycle.cli.main"):
    preload(module)

PATIENCE = 120.0
"""Seconds after which what is waited for does not come."""


def run_train(model: Path, out: Path, text: Path, *, observer: TrainingObserver | None = None, **fields: Any) -> Path:
    """Train in this process; return `out`."""
    request = Train(**{"model": str(model), "out": str(out), "data": (str(text),), **SMALL, **fields})
    stages.train(request, observer)
    return out


def train_words(model: Path, out: Path, text: Path, **fields: Any) -> list[str]:
    """The same as a command line."""
    words = [sys.executable, "-m", "upcycle.cli", "train", str(model), str(out)]
    for name, value in {"data": (str(text),), **SMALL, **fields}.items():
        flag = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, tuple) else (value,)
        words += [flag] if value is True else [word for one in values for word in (flag, str(one))]
    return words


def two_processes(words: list[str], place: Path) -> "tuple[Command, Command]":
    """Start a training on two processes that talk over gloo, with what a launcher tells each of them.

    What they say goes into `heard0` and `heard1` in `place`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, second = (Command(words, place / f"heard{rank}", partial(become_one_of_two, rank, port)) for rank in (0, 1))
    return first, second


def become_one_of_two(rank: int, port: int) -> None:
    """Set what torchrun and accelerate's launcher set."""
    os.environ |= {
        "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "no",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def launched(words: list[str]) -> list[str]:
    """Return a command line that trains on two processes: accelerate calls that a multi-GPU launch without GPUs.

    It takes ACCELERATE_USE_CPU=true in the environment, and the processes talk over gloo.
    """
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                "--num_cpu_threads_per_process", "1", "--main_process_port", "0", "-m"]  # fmt: skip
    return [*launcher, *words[2:]]


def lines(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, but for the measurement before the first step."""
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["step"]]


def losses(out: Path) -> list[float]:
    """The loss of every step."""
    return [line["loss"] for line in lines(out)]


def told(out: Path) -> list[dict[str, Any]]:
    """All that the metrics say, but for times."""
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    told = [json.loads(line) for line in text.splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in told]


def steps(out: Path) -> int:
    """How many steps a run that is going on has told."""
    path = out / "metrics.jsonl"
    return sum('"loss"' in line for line in path.read_text().splitlines()) if path.exists() else 0


def wait_for(condition: Callable[[], Any]) -> None:
    """Return when `condition` holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.002)


class Command:
    """`upcycle` in a process of its own."""

    def __init__(self, words: list[str], heard: Path, before: Callable[[], None] | None = None) -> None:
        """Start it; `before` is called in the process first, what it says to standard error goes into `heard`."""
        self.heard = heard
        self._process = FORKS.Process(target=_command, args=(torch.get_num_threads(), words[3:], heard, before))
        self._process.start()

    def wait_for_step(self, step: int) -> None:
        """Wait until the metrics of the step are told."""
        wait_for(lambda: steps(self.heard.parent / "out") >= step or self._process.exitcode is not None)

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self) -> tuple[int, list[str]]:
        """Wait; return the exit code, and the lines that it said, but for those of the steps."""
        self._process.join(PATIENCE)
        if self._process.exitcode is None:
            self._process.kill()
        assert self._process.exitcode is not None
        said = self.heard.read_text(encoding="utf-8").splitlines()
        return self._process.exitcode, [line for line in said if line.startswith("upcycle: ")]


def _command(threads: int, words: list[str], heard: Path, before: Callable[[], None] | None) -> None:
    from upcycle.cli.main import main

    torch.set_num_threads(threads)
    with heard.open("w") as file:
        os.dup2(file.fileno(), 2)
    if before:
        before()
    sys.argv = ["upcycle", *words]
    main()
