"""A recipe that tests carry out, in a directory of its own: its steps, and which of them were skipped."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from upcycle.cli.main import group
from upcycle.pipeline.locate import BUILT_IN

HEAD = "name: some\ndescription: one line\nsteps:\n"
CONVERT = "  - convert: {model: dense, out: moe, experts: 2, max_shard_size: 1MB, overwrite: true}\n"
VERIFY = "  - verify: {tensors_only: true}\n"
TRAIN = (
    "  - train: {out: trained, data: [book.txt], seq_len: 32, batch_size: 1, max_steps: 2, save_every: 1, "
    "overwrite: true}\n"
)
PLOT = "  - plot: {format: svg}\n"
GENERATE = "  - generate: {prompt: In the, max_new_tokens: 2}\n"


@pytest.fixture
def place(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: a dense model, a text, and a recipe of five steps."""
    shutil.copytree(BUILT_IN["demo:tiny"], tmp_path / "dense")
    (tmp_path / "book.txt").write_bytes(text.read_bytes()[:20_000])
    (tmp_path / "r.yaml").write_text(HEAD + CONVERT + VERIFY + TRAIN + PLOT + GENERATE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that was carried out, to be copied."""
    place = tmp_path_factory.mktemp("whole")
    shutil.copytree(BUILT_IN["demo:tiny"], place / "dense")
    (place / "book.txt").write_bytes(text.read_bytes()[:20_000])
    (place / "r.yaml").write_text(HEAD + CONVERT + VERIFY + TRAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert done() == "RRR"
    return place


@pytest.fixture
def finished(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: a recipe that was carried out."""
    place = Path(shutil.copytree(whole, tmp_path / "place"))
    monkeypatch.chdir(place)
    return place


def invoke(*words: str) -> Any:
    """Run the recipe."""
    return CliRunner().invoke(group, ["run", "r.yaml", *words])


def done(*words: str) -> str:
    """Run it to the end, and return a letter for every step: S for one that was skipped, R for one that ran."""
    result = invoke(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return letters(result.output)


def letters(output: str) -> str:
    return "".join("S" if "\nunchanged, skipped" in part else "R" for part in output.split("\n\n[")[1:])


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\nAnd it came to pass.\n")


def notes(error: BaseException | None) -> str:
    return "; ".join(getattr(error, "__notes__", []))
