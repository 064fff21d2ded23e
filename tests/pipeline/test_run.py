"""`upcycle run` a second time: what is unchanged is skipped, and what was cut off is gone on with."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import upcycle
from tests.chains import CONVERT, HEAD, TRAIN, append, done, finished, invoke, letters, notes, place, touch, whole
from tests.conftest import contents, run_convert
from upcycle.checkpoint.place import VERIFICATION_FILE
from upcycle.errors import InputError
from upcycle.hub.cached import cached_commit
from upcycle.pipeline.done import DIRECTORY, remembered
from upcycle.pipeline.touched import read_by
from upcycle.requests import Generate, Train

assert place  # a fixture
assert whole  # a fixture
assert finished  # a fixture


def test_what_is_unchanged_is_skipped_and_what_is_asked_of_a_model_is_not(place):
    assert done() == "RRRRR"
    before = contents(place)
    again = invoke()
    assert letters(again.output) == "SSSSR"
    assert contents(place) == before
    next(Path("trained/plots").iterdir()).unlink()
    assert done() == "SSSRR"
    lines = again.output.splitlines()
    assert lines[lines.index("[2/5] upcycle verify dense moe --tensors-only") + 1] == "unchanged, skipped"


CHANGES: dict[str, tuple[Callable[[], Any], tuple[str, ...], str]] = {
    "a dense model that was changed": (lambda: touch(Path("dense/config.json")), (), "RRR"),
    "a file more in the dense model": (lambda: Path("dense/more.safetensors").mkdir(), (), "SSS"),
    "a text that was changed": (lambda: append(Path("book.txt")), (), "SSR"),
    "an OUT that is gone": (lambda: shutil.rmtree("moe"), (), "RRR"),
    "an OUT that was changed": (lambda: touch(Path("moe/config.json")), (), "RRR"),
    "a training that is gone": (lambda: shutil.rmtree("trained"), (), "SSR"),
    "checkpoints that are gone": (lambda: shutil.rmtree("trained/checkpoint-000002"), (), "SSS"),
    "a verification beside the weights": (lambda: Path("moe", VERIFICATION_FILE).write_text("{}"), (), "SSS"),
    "a card beside the weights": (lambda: Path("trained/README.md").write_text("# Mine"), (), "SSS"),
    "an option": (lambda: None, ("--set", "train.lr=0.001"), "SSR"),
    "an option of the proof": (lambda: None, ("--set", "verify.tokens=32"), "SRS"),
    "how it is done": (lambda: None, ("--set", "train.overwrite=false"), "SSS"),
    "all again": (lambda: None, ("--again",), "RRR"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.usefixtures("finished")
def test_what_changed_is_done_again_with_all_that_reads_it(change):
    alter, words, expected = CHANGES[change]
    alter()
    assert done(*words) == expected
    assert letters(invoke("--dry-run", *words).output) == ("RRR" if words == ("--again",) else "SSS")


@pytest.mark.usefixtures("finished")
def test_a_recorded_verification_is_what_verify_writes():
    words = ("--set", "verify.record=true")
    assert done(*words) == "SRS"
    assert done(*words) == "SSS"
    Path("moe", VERIFICATION_FILE).unlink()
    assert done(*words) == "SRS"


@pytest.mark.usefixtures("finished")
def test_another_version_does_it_again(monkeypatch):
    monkeypatch.setattr(upcycle, "__version__", "9.9")
    assert done() == "RRR"


def test_a_dry_run_says_what_would_be_skipped_and_writes_nothing(finished):
    touch(Path("moe/config.json"))
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert letters(invoke("--dry-run").output) == "RRR"
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    append(Path("book.txt"))
    done()
    append(Path("book.txt"))
    assert letters(invoke("--dry-run").output) == "SSR"


@pytest.mark.usefixtures("place")
def test_a_dry_run_before_the_first_run_leaves_nothing():
    assert letters(invoke("--dry-run").output) == "RRRRR"
    assert not DIRECTORY.exists()


@pytest.mark.usefixtures("finished")
def test_options_are_remembered_side_by_side():
    other = ("--set", "train.out=other", "--set", "train.lr=0.001")
    assert done(*other) == "SSR"
    assert done() == "SSS"
    assert done(*other) == "SSS"


@pytest.mark.usefixtures("finished")
def test_without_overwrite_what_must_be_done_again_is_refused_as_by_hand():
    before = contents(Path("moe"))
    words = ("--set", "convert.overwrite=false")
    refused = invoke(*words, "--again")
    assert isinstance(refused.exception, InputError)
    assert "--overwrite replaces it" in str(refused.exception)
    assert contents(Path("moe")) == before
    assert done(*words) == "SSS"  # that it was refused changed nothing
    touch(Path("dense/config.json"))
    assert isinstance(invoke(*words).exception, InputError)
    assert contents(Path("moe")) == before
    assert done() == "RRR"


@pytest.mark.usefixtures("place")
def test_a_failure_names_its_step_and_what_is_done():
    Path("book.txt").unlink()
    failed = invoke()
    assert isinstance(failed.exception, InputError)
    assert notes(failed.exception) == (
        "some: step 3 of 5, train, is not done; fix the error and run the same recipe again: it skips steps 1 and 2, "
        "which are done, and continues here"
    )
    Path("book.txt").write_text("In the beginning " * 1000)
    assert done() == "SSRRR"


@pytest.mark.usefixtures("finished")
def test_a_verification_that_failed_is_never_skipped():
    Path("moe/tokenizer.json").write_bytes(b"{}")
    Path("r.yaml").write_text(f"{HEAD}  - verify: {{dense: dense, moe: moe, tensors_only: true}}\n")
    for _ in range(2):
        failed = invoke()
        assert str(failed.exception) == "some: step 1 of 1, verify, did not pass"
        assert notes(failed.exception) == "the same command continues here"


SOUND = {"format": 1, "recipe": "some", "steps": []}
STEP: dict[str, Any] = {"command": "convert", "request": {}, "upcycle": "0", "read": {}, "began": None, "wrote": {}}
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "deep": b'{"a":' * 100_000,
    "of another recipe": json.dumps(SOUND | {"recipe": "other"}).encode(),
    "of another format": json.dumps(SOUND | {"format": 2}).encode(),
    "steps that are none": json.dumps(SOUND | {"steps": [1]}).encode(),
    "a step without its request": json.dumps(SOUND | {"steps": [STEP | {"request": 1}]}).encode(),
    "an identity that is a list": json.dumps(SOUND | {"steps": [STEP | {"read": {"model x": [1]}}]}).encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_ignored_with_a_warning(content, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(HEAD + CONVERT.replace("dense", "'demo:tiny'"))
    DIRECTORY.mkdir()
    (DIRECTORY / "some.json").write_bytes(content)
    with caplog.at_level(logging.WARNING, "upcycle"):
        assert done() == "R"
    (record,) = caplog.records
    assert "some.json" in record.getMessage()
    assert done() == "S"
    assert not list(DIRECTORY.glob("*.partial"))


@pytest.mark.usefixtures("finished")
def test_what_a_damaged_step_names_is_only_looked_at():
    path = DIRECTORY / "some.json"
    state = json.loads(path.read_bytes())
    for step in state["steps"]:
        step["wrote"] = {"\0": 1, "/": None, "x" * 5000: [1, 2], **step["wrote"]}
    path.write_text(json.dumps(state))
    assert done() == "RRR"


def test_where_nothing_can_be_noted_all_is_done_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(HEAD + CONVERT.replace("dense", "'demo:tiny'"))
    DIRECTORY.write_text("a file")
    with caplog.at_level(logging.WARNING, "upcycle"):
        assert done() == "R"
    assert len(caplog.records) == 1
    assert done() == "R"


@pytest.mark.parametrize("name", ["../../etc/x", "a b", "ä", "-", "con/1", "." * 300, "x" * 300])
def test_any_name_of_a_recipe_is_the_name_of_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(f"name: '{name}'\n" + HEAD.split("\n", 1)[1] + CONVERT.replace("dense", "'demo:tiny'"))
    assert done() == "R"
    (path,) = DIRECTORY.iterdir()
    assert path.parent == DIRECTORY
    assert json.loads(path.read_bytes())["recipe"] == name
    assert done() == "S"


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_attach_train_and_merge_are_skipped_and_an_adapter_reads_its_base():
    Path("r.yaml").write_text(
        f"{HEAD}  - attach: {{model: dense, out: start, experts: 2, rank: 2, overwrite: true}}\n"
        f"{TRAIN}  - merge: {{out: merged, dtype: f32, overwrite: true}}\n"
    )
    assert done() == "RRR"
    assert done() == "SSS"
    assert set(read_by(Train(model="start", out="x", data=("book.txt",)))) == {
        "model start", "base of start", "data book.txt",
    }  # fmt: skip
    append(Path("book.txt"))
    assert letters(invoke("--dry-run").output) == "SRR"
    touch(Path("dense/config.json"))
    assert letters(invoke("--dry-run").output) == "RRR"


def test_the_same_step_of_a_model_of_the_hub_is_that_of_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert cached_commit("org/small") is None
    assert cached_commit("../x") is None
    folder = tmp_path / "models--org--small"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0123abc")
    (folder / "snapshots/0123abc").mkdir(parents=True)
    assert cached_commit("org/small") == cached_commit("org/small@0123abc") == "0123abc"
    assert cached_commit("org/small@other") is None
    assert read_by(Generate(model="org/small", prompt="p")) == {"model org/small": "commit 0123abc"}


@pytest.mark.usefixtures("place")
def test_a_run_by_hand_is_nothing_that_a_recipe_did():
    run_convert(Path("dense"), Path("moe"), experts=2)
    assert not remembered("some").has(Generate(model="moe", prompt="p"))
    assert done()[0] == "R"
