"""`upcycle run` after a run that was killed or interrupted: it goes on with its own work, and with no other."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.chains import HEAD, TRAIN, done, finished, invoke, letters, place, touch, whole
from tests.conftest import contents
from tests.training import Command, told, wait_for
from upcycle.checkpoint.place import staging_path
from upcycle.checkpoint.staging import Staging
from upcycle.errors import InputError, StagingError
from upcycle.train.watch.journal import Journal

assert place  # a fixture
assert whole  # a fixture
assert finished  # a fixture


def kill_after_a_shard(place: str) -> None:
    os.chdir(place)
    record = Staging.record

    def recorded(self: Staging, *words: Any) -> None:
        record(self, *words)
        os.kill(os.getpid(), signal.SIGKILL)

    Staging.record = recorded  # type: ignore[assignment, method-assign]


def kill_after_a_checkpoint(place: str) -> None:
    os.chdir(place)
    add = Journal.add

    def added(self: Journal, line: dict[str, Any]) -> None:
        add(self, line)
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.add = added  # type: ignore[method-assign]


def run_and_be_killed(place: Path, before: Callable[[str], None], *words: str) -> None:
    command = ["python", "-m", "upcycle.cli", "run", "r.yaml", *words]
    assert Command(command, place / "heard", partial(before, str(place))).end() == (-signal.SIGKILL, [])


def test_a_conversion_that_was_killed_is_gone_on_with(finished):
    expected = contents(Path("moe"))
    words = ("--set", "convert.seed=1")
    run_and_be_killed(finished, kill_after_a_shard, *words)
    assert contents(Path("moe")) == expected  # as long as the new one is not complete
    shards = {path.name: path.stat().st_mtime_ns for path in staging_path(Path("moe")).glob("*.safetensors")}
    result = invoke(*words)
    assert result.exit_code == 0, result.exception
    assert "[1/3] upcycle convert dense moe --experts 2 --seed 1 --max-shard-size 1MB --resume --overwrite" in (
        result.output
    )
    assert letters(result.output) == "RRR"
    kept = {name: Path("moe", name).stat().st_mtime_ns for name in shards}
    assert any(kept[name] == shards[name] for name in shards)
    assert not staging_path(Path("moe")).exists()
    assert done(*words) == "SSS"


@pytest.mark.slow
def test_a_merge_that_was_killed_is_gone_on_with(place):
    Path("r.yaml").write_text(
        f"{HEAD}  - attach: {{model: dense, out: start, experts: 2, rank: 2}}\n{TRAIN}"
        "  - merge: {out: merged, dtype: f32, max_shard_size: 1MB}\n"
    )
    run_and_be_killed(place, kill_after_a_shard)
    shards = {path.name: path.stat().st_mtime_ns for path in staging_path(Path("merged")).glob("*.safetensors")}
    result = invoke()
    assert result.exit_code == 0, result.exception
    assert letters(result.output) == "SSR"
    assert "[3/3] upcycle merge trained merged --dtype f32 --max-shard-size 1MB --resume" in result.output
    assert any(Path("merged", name).stat().st_mtime_ns == changed for name, changed in shards.items())
    assert done() == "SSS"


@pytest.mark.slow
def test_a_conversion_of_what_changed_meanwhile_is_not_gone_on_with(place):
    run_and_be_killed(place, kill_after_a_shard, "--set", "convert.overwrite=false")
    left = contents(staging_path(Path("moe")))
    touch(Path("dense/model.safetensors"))
    refused = invoke("--set", "convert.overwrite=false")
    assert isinstance(refused.exception, InputError)
    assert "an unfinished output is there" in str(refused.exception)
    assert contents(staging_path(Path("moe"))) == left
    result = invoke()
    assert "--resume" not in result.output
    assert letters(result.output) == "RRRRR"


@pytest.mark.usefixtures("place")
def test_what_another_put_in_the_way_is_left_alone():
    theirs = staging_path(Path("moe"))
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("mine")
    for _ in range(2):
        assert isinstance(invoke().exception, InputError | StagingError)
    assert contents(theirs) == {"thesis.tex": b"mine"}


def test_a_training_that_was_killed_is_gone_on_with(finished):
    words = ("--set", "train.max_steps=4")
    run_and_be_killed(finished, kill_after_a_checkpoint, *words)
    assert [path.name for path in sorted(Path("trained").glob("checkpoint-*"))] == ["checkpoint-000001"]
    result = invoke(*words)
    assert result.exit_code == 0, result.exception
    assert letters(result.output) == "SSR"
    assert "--resume" in result.output
    whole = invoke(*words, "--set", "train.out=whole")
    assert "--resume" not in whole.output
    assert told(Path("trained")) == told(Path("whole"))
    assert (Path("trained/model.safetensors")).read_bytes() == Path("whole/model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_training_that_was_interrupted_is_gone_on_with_twice(place):
    before = partial(os.chdir, str(place))
    words = ["python", "-m", "upcycle.cli", "run", "r.yaml", "--set", "train.max_steps=40"]
    for goal in (3, 6):
        command = Command(words, place / "heard", before)
        wait_for(Path("trained", f"checkpoint-{goal:06d}").exists)
        command.send(signal.SIGINT)
        code, said = command.end()
        assert code == 130
        assert "some: step 3 of 5, train, is not done; the same command skips steps 1 and 2" in said[-1]
    result = invoke("--set", "train.max_steps=40")
    assert result.exit_code == 0, result.exception
    assert [line["step"] for line in told(Path("trained"))] == [*range(1, 41)]
    assert letters(result.output) == "SSRRR"


@pytest.mark.slow
def test_a_training_of_other_options_is_begun_anew(finished):
    run_and_be_killed(finished, kill_after_a_checkpoint, "--set", "train.max_steps=4")
    result = invoke()
    assert "--resume" not in result.output
    assert letters(result.output) == "SSR"
    refused = invoke("--set", "train.overwrite=false", "--set", "train.max_steps=4")
    assert isinstance(refused.exception, InputError)
    assert "overwrite" in str(refused.exception)
