"""A conversion straight to the Hub: what it leaves there, alone and in a recipe."""

import json
from pathlib import Path

import pytest

from tests.hub.hub import Hub
from tests.pushing import WAYS
from tests.streams import (
    FIELDS,
    ON_MAIN,
    REPO,
    SHARDS,
    SLOW,
    Streamer,
    check_done,
    hashes,
    kill_before,
    options,
    pushed,
    shards_on,
    streamer,
    titles,
)

PLAIN: dict[str, object] = {"noise": 0.0, "dtype": "keep", "max_shard_size": "5GB"}


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> Streamer:
    """By LFS."""
    return streamer(hub, tmp_path / "user")


@pytest.fixture(params=WAYS)
def either(hub: Hub, tmp_path: Path, request: pytest.FixtureRequest) -> Streamer:
    """By LFS and by Xet."""
    return streamer(hub, tmp_path / "user", request.param)


@pytest.mark.parametrize(
    ("wire", "fields"),
    [
        ("xet", {}), SLOW("lfs", {}), SLOW("xet", PLAIN), SLOW("lfs", PLAIN),
        SLOW("lfs", {"router": "zeros", "experts": 3}),
    ],
)  # fmt: skip
def test_the_same_as_a_push(tmp_path: Path, tiny: Path, hub: Hub, wire: str, fields: dict[str, object]) -> None:
    expected = pushed(tiny, **fields)
    user = streamer(hub, tmp_path / "user", wire)
    assert {"README.md", "config.json", "upcycle.json"} < set(expected)
    done = user.stream(tiny, **fields)
    check_done(user, done, expected)
    weights = [name for name in expected if name.endswith(".safetensors")]
    assert len(weights) == (1 if fields == PLAIN else SHARDS) or "experts" in fields
    assert f"{user.hub.url}/{REPO}: {len(expected) - 1} files, as they are here; commit " in done.stdout
    assert f"{weights[-1]}: on the Hub, {len(weights)} of {len(weights)}" in done.stderr
    again = user.stream(tiny, **fields)
    check_done(user, again, expected)
    assert not user.hub.requests(ON_MAIN)[1:], "there was nothing to commit"


LOAD = """
import json
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM

place = snapshot_download({0!r})
_, said = AutoModelForCausalLM.from_pretrained({0!r}, output_loading_info=True)
print(json.dumps([place, [sorted(names) for names in said.values()]]))
"""


@pytest.mark.slow
def test_it_comes_back(either: Streamer) -> None:
    assert either.stream(Path("demo:tiny"), max_shard_size="1MB").returncode == 0
    place, said = json.loads(either.python(LOAD.format(REPO)))
    assert not any(said), "keys that are missing, not expected, or of another shape"
    verified = either.run("verify", "demo:tiny", place)
    assert verified.returncode == 0, verified.stdout
    assert "verified" in verified.stdout


@pytest.mark.slow
def test_a_private_repository(user: Streamer, tiny: Path) -> None:
    done = user.run("convert", tiny, "--private", *options(stream_to=REPO, **FIELDS))
    assert done.returncode == 0, done.stderr
    assert user.repo.access == "private"
    assert len(shards_on(user.repo, "main")) == SHARDS


@pytest.mark.slow
def test_a_repository_that_held_another_model(tiny: Path, user: Streamer) -> None:
    expected = pushed(tiny)
    assert user.stream(tiny, seed=2, max_shard_size="50KB").returncode == 0
    head = user.repo.find("main")
    assert head is not None
    card = head.files["README.md"].read(0, 10**6) + b"\nMy own words.\n"
    kept = {"notes.txt": b"keep me", "weights/old.safetensors": b"and me"}
    stale = {"pytorch_model.bin": b"old", "tokenizer.json": b"{}", "chat_template.jinja": b"old"}
    user.repo.commit({**kept, **stale, "README.md": card}, title="edited")
    before = hashes(user.repo)
    kill_before(user, tiny, ON_MAIN)
    assert hashes(user.repo) == before, "main is as it was until the last commit"
    done = user.stream(tiny)
    assert done.returncode == 0, done.stderr
    now = hashes(user.repo)
    assert titles(user.repo)[:2] == ["Upload model by upcycle", "edited"]
    assert now.keys() == expected.keys() | kept.keys()
    assert {name for name in expected if now[name] != expected[name]} == {"README.md"}
    head = user.repo.find("main")
    assert head is not None
    text = head.files["README.md"].read(0, 10**6).decode()
    assert "My own words." in text
    assert text.count("seed 2") + text.count("--seed 2") == 0, "its marked block is of the new model"


# -- in a recipe ------------------------------------------------------------------------------------------------------


def recipe(user: Streamer, steps: str) -> Path:
    path = user.home / "recipe.yaml"
    path.write_text(f"name: streamed\ndescription: to the Hub\nsteps:\n{steps}")
    return path


def convert_step(tiny: Path) -> str:
    fields = json.dumps({"model": str(tiny), "stream_to": REPO, **FIELDS})
    return f"  - convert: {fields}\n"


@pytest.mark.slow
def test_a_recipe_streams(tiny: Path, user: Streamer) -> None:
    expected = pushed(tiny)
    check_done(user, user.run("run", recipe(user, convert_step(tiny))), expected)


@pytest.mark.parametrize(
    ("step", "lacks"),
    [("verify: {}", "verify lacks moe"), SLOW("generate: {prompt: x}", "generate lacks model"),
     SLOW("push: {repo: someone/other}", "push lacks model"), SLOW("train: {out: o, data: x}", "train lacks model")],
)  # fmt: skip
def test_what_follows_has_no_model(user: Streamer, tiny: Path, step: str, lacks: str) -> None:
    done = user.run("run", recipe(user, f"{convert_step(tiny)}  - {step}\n"))
    assert done.returncode == 2
    assert lacks in done.stderr
    assert user.hub.log == []
