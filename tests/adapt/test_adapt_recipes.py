"""The recipes for adapter experts, carried out on the built-in model with fewer steps than they ask for."""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from upcycle.pipeline.run import run
from upcycle.pipeline.stages import Silent
from upcycle.pipeline.steps import find_recipe, read_recipe
from upcycle.requests import Merge, Train

STEPS = ("max_steps=4", "seq_len=64", "batch_size=2", "lr=0.02")


class Watcher:
    """Keeps what every step came to."""

    def __init__(self) -> None:
        self.ended: list[tuple[Any, Any]] = []

    def begin(self, number: int, count: int, request: Any) -> None: ...

    def progress(self, what: str) -> AbstractContextManager[Any]:  # noqa: ARG002
        return nullcontext(lambda _total: lambda _count: None)

    def training(self) -> AbstractContextManager[Any]:
        return nullcontext(Silent())

    def write(self, piece: str) -> None: ...

    def end(self, request: Any, result: Any) -> None:
        self.ended.append((request, result))


@pytest.mark.parametrize(
    ("name", "merged"),
    [
        pytest.param("mixlora", "mixtral", marks=pytest.mark.slow),
        ("camelidae-pesc", None),
        ("compact-granite", "granitemoeshared"),
        pytest.param("compose-loras", "mixtral", marks=pytest.mark.slow),
    ],
)
def test_a_recipe_goes_through(
    name: str, merged: str | None, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "book.txt").write_bytes(text.read_bytes())
    (tmp_path / "code.txt").write_bytes(Path(sys.modules["inspect"].__file__ or "").read_bytes())
    monkeypatch.chdir(tmp_path)
    path = find_recipe(name)
    trainings = sum(isinstance(step, Train) for step in read_recipe(path).steps)
    prefixes = ["train"] if trainings == 1 else [f"train.{number}" for number in range(trainings)]
    overrides = [f"{prefix}.{setting}" for prefix in prefixes for setting in STEPS]
    watcher = Watcher()
    run(read_recipe(path, [*overrides, *(["merge.dtype=f32"] if merged else [])]), watcher)
    results = [result for request, result in watcher.ended if isinstance(request, Merge)]
    assert [result.plan.config["model_type"] for result in results] == ([merged] if merged else [])
    assert all(result.report.passed and result.plan.exact for result in results)
    _, written = watcher.ended[-1]
    assert written.startswith("Thus saith the LORD")
