"""One conversion by several processes: each writes its part, whoever is last puts the output in place."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import contents, edit_json, run_convert
from upcycle.checkpoint import lock, writer
from upcycle.checkpoint.journal import Part
from upcycle.checkpoint.place import staging_path
from upcycle.errors import InputError, RequestError, StagingError
from upcycle.pipeline.stages import convert, plan
from upcycle.plan.execute import share
from upcycle.requests import Convert, Plan

SHARDS: dict[str, Any] = {"experts": 2, "max_shard_size": "13KB"}
"""Five shards of the plain llama."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work" / "moe"


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes."""
    return contents(run_convert(tiny, tmp_path_factory.mktemp("whole") / "moe", **SHARDS))


def write_part(model: Path, out: Path, part: str, **fields: Any) -> tuple[str, ...]:
    """Write a part; return the shards that are left to others."""
    return convert(Convert(model=str(model), out=str(out), part=part, **{"top_k": 2, **SHARDS, **fields})).left


def start(model: Path, out: Path, part: str, *words: str) -> subprocess.Popen[str]:
    """The real command, under a limit that makes it slow enough to be met at work."""
    command = [sys.executable, "-m", "upcycle.cli", "convert", str(model), str(out), "--part", part, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# -- shares -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_every_shard_has_one_part(tiny: Path, count: int) -> None:
    planned = plan(Plan(model=str(tiny), **{"top_k": 2, **SHARDS})).plan
    shares = [share(planned, Part(index, count)) for index in range(1, count + 1)]
    assert sorted(shard.name for part in shares for shard in part) == [shard.name for shard in planned.shards]
    loads = [sum(shard.size for shard in part) for part in shares]
    assert max(loads) - min(loads) <= max(shard.size for shard in planned.shards)


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "1/0", "a/b", "-1/3", "1/3/5", "1 / 3", "", "1/100000"])
def test_parts_that_make_no_sense(part: str) -> None:
    with pytest.raises(RequestError) as caught:
        Convert(model="m", out="o", part=part)
    assert caught.value.expected == "a part such as 3/16, from 1/16 to 16/16"
    assert caught.value.option == "part"


# -- one after another ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_the_last_part_joins(tiny: Path, out: Path, whole: dict[str, bytes], order: tuple[int, ...]) -> None:
    for index in order[:-1]:
        left = write_part(tiny, out, f"{index}/3")
        assert left
        assert not out.exists()
    assert write_part(tiny, out, f"{order[-1]}/3") == ()
    assert contents(out) == whole
    assert list(out.parent.iterdir()) == [out]


def test_computed_tensors_too(tiny: Path, out: Path, tmp_path: Path) -> None:
    """The receipt holds the hashes of what every part drew."""
    alone = contents(run_convert(tiny, tmp_path / "alone", **{**SHARDS, "noise": 0.1}))
    for index in (2, 1):
        write_part(tiny, out, f"{index}/2", noise=0.1)
    assert contents(out) == alone
    assert (
        len(json.loads(alone["upcycle.json"])["computed_sha256"]) == 2 * 2 * 3 + 2
    )  # experts, layers, matrices; routers


def test_more_parts_than_shards(tiny: Path, out: Path, whole: dict[str, bytes]) -> None:
    for index in range(1, 8):
        write_part(tiny, out, f"{index}/7")
    assert contents(out) == whole


def test_a_part_that_runs_again_writes_nothing_twice(tiny: Path, out: Path, whole: dict[str, bytes]) -> None:
    write_part(tiny, out, "1/2")
    times = {path.name: path.stat().st_mtime_ns for path in staging_path(out).glob("*.safetensors")}
    assert times
    write_part(tiny, out, "1/2")
    assert {path.name: path.stat().st_mtime_ns for path in staging_path(out).glob("*.safetensors")} == times
    write_part(tiny, out, "2/2")
    assert contents(out) == whole


def test_an_older_output_stays_until_the_last_part(tiny: Path, out: Path, whole: dict[str, bytes]) -> None:
    run_convert(tiny, out, experts=3)
    before = contents(out)
    with pytest.raises(InputError, match="OUT is not empty"):
        write_part(tiny, out, "1/2")
    write_part(tiny, out, "1/2", overwrite=True)
    assert contents(out) == before
    write_part(tiny, out, "2/2", overwrite=True)
    assert contents(out) == whole
    assert list(out.parent.iterdir()) == [out]


# -- what does not fit together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "fields", "found", "expected"),
    [
        ("1/3", {}, "parts 2", "parts 3"),
        (None, {"resume": True}, "parts 2", "parts 1"),
    ],
)
def test_the_number_of_parts_is_fixed_by_the_first(
    tiny: Path, out: Path, part: str | None, fields: dict[str, Any], found: str, expected: str
) -> None:
    write_part(tiny, out, "1/2")
    before = contents(out.parent)
    with pytest.raises(InputError) as caught:
        write_part(tiny, out, part, **fields)  # type: ignore[arg-type]
    assert (caught.value.found, caught.value.expected) == (found, expected)
    assert contents(out.parent) == before


def test_parts_of_different_work(tiny: Path, out: Path, whole: dict[str, bytes]) -> None:
    write_part(tiny, out, "1/2")
    with pytest.raises(InputError, match="has another plan or another source"):
        write_part(tiny, out, "2/2", seed=1)
    write_part(tiny, out, "2/2")
    assert contents(out) == whole


def test_a_refusal_leaves_the_other_parts_alone(tiny: Path, out: Path, whole: dict[str, bytes]) -> None:
    """As when only the machine of part 2 finds that the model is damaged."""
    write_part(tiny, out, "1/2")
    with pytest.raises(InputError):
        write_part(tiny, out, "2/2", tokenizer=str(out.parent))
    assert write_part(tiny, out, "2/2") == ()
    assert contents(out) == whole


def test_shards_of_a_model_that_changed_are_not_kept(
    tiny: Path, copy_of: Any, out: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are exchanged for others while part 1 is written, and put back before it runs again."""
    model = copy_of(tiny)
    weights, aside = model / "model.safetensors", model.parent / "aside.safetensors"
    other = bytearray(weights.read_bytes())
    other[-5000:] = bytes(5000)
    real = writer.copy_range

    def exchanged(*args: Any) -> None:
        if not aside.exists():
            weights.rename(aside)
            weights.write_bytes(other)
        real(*args)

    monkeypatch.setattr("upcycle.plan.execute.copy_range", exchanged)
    with pytest.raises(InputError, match="the model changed while the output was written"):
        write_part(model, out, "1/2", workers=1)
    monkeypatch.undo()
    aside.replace(weights)
    write_part(model, out, "1/2")
    write_part(model, out, "2/2")
    assert {name: data for name, data in contents(out).items() if name != "upcycle.json"} == {
        name: data for name, data in whole.items() if name != "upcycle.json"
    }


def test_what_helps_is_said(tiny: Path, copy_of: Any, out: Path) -> None:
    model = copy_of(tiny)
    write_part(model, out, "1/2")
    for part, hint in (("1/3", f"go on with --part I/2, or remove {staging_path(out)} to start again"),):
        with pytest.raises(InputError) as caught:
            write_part(model, out, part, overwrite=True)
        assert caught.value.hint == hint
    os.utime(model / "model.safetensors")
    with pytest.raises(InputError) as caught:
        write_part(model, out, "2/2")
    assert caught.value.hint == (
        f"a copy of the model needs its time stamps too (cp -p, rsync -t), or remove {staging_path(out)}"
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_part_that_runs_again_when_all_is_done(
    tiny: Path, out: Path, whole: dict[str, bytes], overwrite: bool
) -> None:
    for index in (1, 2):
        write_part(tiny, out, f"{index}/2")
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert write_part(tiny, out, "1/2", overwrite=overwrite) == ()
    assert contents(out) == whole
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times
    assert list(out.parent.iterdir()) == [out]


def test_resume_of_what_is_complete_is_done(tiny: Path, out: Path, whole: dict[str, bytes]) -> None:
    run_convert(tiny, out, **SHARDS)
    run_convert(tiny, out, resume=True, **SHARDS)
    assert contents(out) == whole
    shard = next(out.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="OUT is not empty"):
        run_convert(tiny, out, resume=True, **SHARDS)


@pytest.mark.parametrize("kind", ["link to a directory", "link inside", "file"])
def test_a_staging_directory_that_is_none(tiny: Path, out: Path, tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("")
    if kind == "link to a directory":
        staging_path(out).symlink_to(elsewhere)
    elif kind == "link inside":
        staging_path(out).mkdir()
        (staging_path(out) / "state.jsonl").symlink_to(elsewhere / "precious")
    else:
        staging_path(out).write_text("precious")
    with pytest.raises(InputError, match=r"is in the way and is no directory|holds symbolic links"):
        run_convert(tiny, out, **SHARDS)
    assert not out.exists()
    assert (elsewhere / "precious").read_text() == ""


def test_an_abandoned_part_is_cleared_by_overwrite(tiny: Path, out: Path, whole: dict[str, bytes]) -> None:
    write_part(tiny, out, "1/3")
    assert contents(run_convert(tiny, out, overwrite=True, **SHARDS)) == whole
    assert list(out.parent.iterdir()) == [out]


# -- side by side -----------------------------------------------------------------------------------------------------


def test_a_second_writer_of_a_part_is_told(tiny: Path, out: Path, whole: dict[str, bytes]) -> None:
    write_part(tiny, out, "1/2")
    busy = lock.take(staging_path(out) / Part(2, 2).lock)
    with pytest.raises(StagingError) as caught:
        write_part(tiny, out, "2/2")
    assert str(caught.value) == f"{staging_path(out)}: another upcycle process is writing part 2 of 2 here"
    with pytest.raises(StagingError, match="another upcycle process is writing here"):  # and it is not swept away
        run_convert(tiny, out, overwrite=True, **SHARDS)
    busy.release()
    write_part(tiny, out, "2/2")
    assert contents(out) == whole


def test_parts_that_finish_together(tiny: Path, out: Path, whole: dict[str, bytes]) -> None:
    """Twenty times six threads: one of them joins, the others find it done or not yet their turn."""
    for _ in range(20):
        with ThreadPoolExecutor(6) as pool:
            left = list(pool.map(lambda index: write_part(tiny, out, f"{index}/6"), range(1, 7)))
        assert () in left
        assert contents(out) == whole
        assert list(out.parent.iterdir()) == [out]
        for path in out.iterdir():
            path.unlink()
        out.rmdir()


@pytest.mark.slow  # the real model
def test_three_processes_one_killed_and_run_again(smollm2: Path, out: Path, tmp_path: Path) -> None:
    """SmolLM2-135M with two experts, computed so that it takes seconds, in three parts."""
    words = ["--experts", "2", "--noise", "0.01", "--max-shard-size", "40MB"]
    alone = tmp_path / "alone"
    command = [sys.executable, "-m", "upcycle.cli", "convert", str(smollm2), str(alone), *words]
    subprocess.run(command, check=True, capture_output=True)
    first, second, third = (start(smollm2, out, f"{index}/3", *words) for index in (1, 2, 3))
    journal = staging_path(out) / Part(2, 3).journal
    while not (journal.exists() and b"\n" in journal.read_bytes()):
        assert second.poll() is None, second.communicate()
        time.sleep(0.01)
    second.kill()
    assert second.wait() == -signal.SIGKILL
    for process in (first, third):
        stdout, stderr = process.communicate(timeout=120)
        assert (process.returncode, stderr.count("\n")) == (0, 1), stderr
        assert stderr.startswith("upcycle: warning: the GGUF file has 211 quantised tensors (Q4_1, Q8_0)")
        assert "left to other parts, and the last to finish puts it in place" in stdout
    assert not out.exists()
    again = start(smollm2, out, "2/3", *words)
    assert again.communicate(timeout=120)[0].startswith(f"{out}: ")
    assert again.returncode == 0
    assert contents(out) == contents(alone)
    assert list(out.parent.iterdir()) == [out]
    second.communicate()


def test_a_model_that_one_machine_has_in_another_version(
    tiny: Path, copy_of: Any, out: Path, whole: dict[str, bytes]
) -> None:
    write_part(tiny, out, "1/2")
    other = copy_of(tiny)
    edit_json(other / "config.json", rms_norm_eps=1e-4)
    with pytest.raises(InputError, match="has another plan or another source"):
        write_part(other, out, "2/2")
    write_part(tiny, out, "2/2")
    assert contents(out) == whole
