"""Who is shown a training while it runs: the panel of a terminal, or a program."""

from typing import Any, Protocol


class TrainingObserver(Protocol):
    """Is told of a training by its main process."""

    def begin(self, total_steps: int, done: int) -> None:
        """Training begins; `done` of `total_steps` were made by the run that it resumes."""

    def step(self, metrics: dict[str, Any]) -> None:
        """A step is done; `metrics` is its line in `metrics.jsonl`."""

    def note(self, text: str) -> None:
        """Something else is worth saying: an alert, a checkpoint that was saved."""
