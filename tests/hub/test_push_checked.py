"""What is published is what was checked: files that change meanwhile, weights that were verified, and what stays."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import edit_json, run_convert
from tests.hub.server import Hub
from tests.pushing import Author, content, held

NAME = "someone/moe"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A small mixture of four experts."""
    return run_convert(tiny, tmp_path_factory.mktemp("made") / "moe")


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(made, tmp_path / "moe"))


@pytest.fixture
def author(hub: Hub, tmp_path: Path) -> Author:
    """Who may write, by chunks, and hardly waits before another attempt."""
    return Author(hub, tmp_path / "home").impatient()


def flipped(path: Path) -> None:
    """Change a byte, and not the size."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


BEFORE: dict[str, Any] = {"pattern": f"GET /api/models/{NAME}/revision", "after": 10}
"""Once everything has been checked that needs no question."""
BEGUN: dict[str, Any] = {"pattern": "POST .*/preupload/", "upload_after": 10}
"""Once every file has been read."""

CHANGES: dict[str, tuple[str, Callable[[Path], object], dict[str, Any]]] = {
    "weights": ("model.safetensors", flipped, BEFORE),
    "fewer weights": ("model.safetensors", lambda path: os.truncate(path, 1000), BEFORE),
    "no weights": ("model.safetensors", Path.unlink, BEFORE),
    "no picture": ("curve.png", Path.unlink, BEFORE),
    "config": ("config.json", flipped, BEGUN),
    "no config": ("config.json", Path.unlink, BEGUN),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_file_that_changes_after_it_was_checked(hub: Hub, author: Author, model: Path, case: str) -> None:
    name, change, moment = CHANGES[case]
    (model / "curve.png").write_bytes(b"x")
    repo = hub.repo(NAME, {".gitattributes": b"", "model.safetensors": (model / "model.safetensors").read_bytes()})
    before = repo.refs["main"]
    fault = hub.plant(**moment, hold=True)
    running = author.start("push", model, NAME)
    assert fault.reached.wait(60)
    change(model / name)
    hub.closing.set()
    done = running.finish()
    hub.closing.clear()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"upcycle: error: {model / name}: changed since it was checked; push it when nothing writes to it"
    )
    assert repo.refs["main"] == before


def test_a_small_file_is_committed_as_it_was_checked(hub: Hub, author: Author, model: Path) -> None:
    path = model / "config.json"
    config, fact = path.read_bytes(), path.stat()
    fault = hub.plant(**BEGUN, hold=True)
    running = author.start("push", model, NAME)
    assert fault.reached.wait(60)
    flipped(path)
    os.utime(path, ns=(fact.st_atime_ns, fact.st_mtime_ns))  # nobody can see it
    hub.closing.set()
    running.finish()
    hub.closing.clear()
    assert content(hub.repos[NAME], "config.json") == config


# -- weights that were verified ---------------------------------------------------------------------------------------


def verify(model: Path) -> None:
    """Record what `upcycle verify --record` does."""
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in model.glob("*.safetensors")}
    receipt = hashlib.sha256((model / "upcycle.json").read_bytes()).hexdigest()
    entry = {
        "made": "verification", "receipt_sha256": receipt, "passed": True, "lines": [], "weights": weights,
        "parity": {},
    }  # fmt: skip
    (model / "verify.json").write_text(json.dumps(entry))


@pytest.mark.parametrize("there", [False, True])
def test_weights_that_are_not_those_that_were_verified(hub: Hub, author: Author, model: Path, there: bool) -> None:
    verify(model)
    author.push(model, NAME)
    repo, before = hub.repos[NAME], hub.repos[NAME].refs["main"]
    assert "verify.json" in held(repo)
    flipped(model / "model.safetensors")
    if there:  # somebody has put the changed ones there already
        before = repo.commit({"model.safetensors": model / "model.safetensors"}).id
    message = author.refused(model, NAME)
    assert f"{model / 'model.safetensors'}: are not the weights that were verified" in message
    assert "verify again with --record, or remove verify.json" in message
    assert repo.refs["main"] == before
    verify(model)
    author.push(model, NAME)
    assert content(repo, "model.safetensors") == (model / "model.safetensors").read_bytes()


def test_a_verification_of_something_else_stays_here(hub: Hub, author: Author, model: Path) -> None:
    verify(model)
    edit_json(model / "upcycle.json", versions={})
    assert author.push(model, NAME)["left"] == ["verify.json"]
    assert "verify.json" not in held(hub.repos[NAME])


# -- what is there already --------------------------------------------------------------------------------------------


def test_what_an_earlier_model_has_left(hub: Hub, author: Author, model: Path) -> None:
    beside = ["model-4bit/model.safetensors", "model.Q8_0.gguf", "onnx/model.onnx", "original/params.json"]
    stale = ["consolidated.safetensors", "params.json", "preprocessor_config.json", "tf_model.h5", "tokenizer.model.v9"]
    repo = hub.repo(NAME, {".gitattributes": b"", **dict.fromkeys((*beside, *stale), b"x")})
    told = author.push(model, NAME)
    assert told["removed"] == stale
    assert held(repo).keys() == {*beside, "README.md", *(path.name for path in model.iterdir())}
    assert [note for note in told["notes"] if all(name in note for name in beside)]
    (model / "LICENSE").write_text("mine")
    assert not [note for note in author.push(model, NAME)["notes"] if beside[0] in note]  # of this model, perhaps


def test_a_place_of_a_machine_is_not_published(hub: Hub, author: Author, model: Path) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"name_or_path": str(model), "model_max_length": 9}))
    author.push(model, NAME)
    repo = hub.repos[NAME]
    assert json.loads(content(repo, "tokenizer_config.json")) == {"model_max_length": 9}
    assert author.push(model, NAME)["uploaded"] == []
    assert not [name for name in held(repo) if str(model).encode() in content(repo, name)]
