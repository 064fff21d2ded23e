"""Tells each step of a training to `metrics.jsonl`, to the observer and to a tracker."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from upcycle.checkpoint.place import METRICS_FILE
from upcycle.checkpoint.writer import write_durably
from upcycle.errors import StagingError
from upcycle.train.parallel.world import World
from upcycle.train.watch.alerts import Watch
from upcycle.train.watch.observer import TrainingObserver


class Journal:
    """A context that writes and tells on the main process, and does nothing on the others."""

    def __init__(self, out: Path, done: int, world: World, observer: TrainingObserver) -> None:
        """Open `metrics.jsonl` in `out`; lines up to step `done`, from which a resumed run goes on, stay."""
        self._world, self._observer, self._done = world, observer, done
        self._watch = Watch()
        self._losses: list[float] = []
        self._eval_losses: list[float] = []
        self._file = _reopened(out / METRICS_FILE, done, self._remember) if world.is_main else None

    def __enter__(self) -> "Journal":
        """Return itself."""
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        """Close the file; what a full disk did not take was reported when it was written."""
        if self._file:
            with suppress(OSError):
                self._file.close()

    @property
    def losses(self) -> tuple[float, ...]:
        """The means over the first and the last tenth of the steps, ten at most: single batches differ by chance."""
        count = min(max(len(self._losses) // 10, 1), 10)
        return (fmean(self._losses[:count]), fmean(self._losses[-count:])) if self._losses else ()

    @property
    def eval_losses(self) -> tuple[float, ...]:
        """All held-out losses so far."""
        return tuple(self._eval_losses)

    def begin(self, total_steps: int) -> None:
        """Tell the observer that training begins or is resumed."""
        if self._file:
            self._observer.begin(total_steps, self._done)

    def add(self, line: dict[str, Any]) -> None:
        """Write and tell the line of a step, with its alerts; raise StagingError when the disk is full."""
        if not self._file:
            return
        alerts = self._remember(line)
        if alerts:
            line["alerts"] = alerts
        try:
            self._file.write(_text(line))
            self._file.flush()
        except OSError as error:
            raise StagingError(f"{self._file.name}: {error.strerror}") from error
        self._observer.step(line)
        for alert in alerts:
            self._observer.note(alert)
        self._world.log(dict(_numbers(line)), step=line["step"])

    def make_durable(self) -> None:
        """Make the lines durable, before the checkpoint that follows them is."""
        if self._file:
            os.fsync(self._file.fileno())

    def note(self, text: str) -> None:
        """Tell the observer a sentence."""
        if self._file:
            self._observer.note(text)

    def _remember(self, line: Mapping[str, Any]) -> list[str]:
        self._losses += [line["loss"]] if line.get("loss") is not None else []
        self._eval_losses += [line["eval_loss"]] if line.get("eval_loss") is not None else []
        return self._watch.see(dict(line))


def _reopened(path: Path, done: int, remember: Any) -> Any:
    kept = [line for line in _whole_lines(path) if line["step"] <= done] if done else []
    for line in kept:
        remember(line)
    staged = path.with_name(f"{path.name}.partial")
    write_durably(staged, "".join(map(_text, kept)).encode())
    staged.replace(path)
    return path.open("a", encoding="utf-8")


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines up to the first that is cut off, as the last one may be after a kill."""
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            return
        yield line


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _numbers(line: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a line under names such as `grad_norm/router`, for trackers."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{name}/")
        elif isinstance(value, list):
            for number, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from _numbers(item, f"{before}{name}/{number}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "layer"):
            yield before + name, value
