"""A recipe from a dense model to the Hub: run, run again, and run after the Hub has failed."""

import json
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.hub.client import Client
from upcycle.pipeline.locate import BUILT_IN

RECIPE = """
name: shipped
description: from a dense model to the Hub
steps:
  - convert: {model: tiny, out: start, experts: 4, top_k: 2}
  - verify: {record: true, tokens: 32}
  - train: {out: trained, data: [book.txt], eval_split: 0.1, seq_len: 32, batch_size: 2, max_steps: 3, eval_every: 3}
  - push: {repo: shipped}
"""

# A Hub that is down for good is waited for in all for a minute; here for a second.
QUICK = """
import huggingface_hub.utils._http as http
from upcycle.hub import target
target.WAITS = (0.1, 0.1)
http.http_backoff.__kwdefaults__ |= {"base_wait_time": 0.05, "max_wait_time": 0.05}
from upcycle.cli.main import main; main()
"""


@pytest.fixture
def user(client: Client, text: Path) -> Client:
    """Somebody with a recipe, a model and a text in the current directory."""
    client.home.mkdir()
    (client.home / "tiny").symlink_to(BUILT_IN["demo:tiny"])
    (client.home / "book.txt").write_bytes(text.read_bytes()[:20_000])
    (client.home / "shipped.yaml").write_text(RECIPE)
    return client.with_token()


@pytest.mark.slow  # each of its commands has a fast test of its own
def test_from_a_dense_model_to_the_hub_and_nothing_twice(hub: Hub, user: Client) -> None:
    first = user.warm().run("run", "shipped.yaml")
    assert first.returncode == 0, first.stderr
    files = hub.repos["someone/shipped"].commits[hub.repos["someone/shipped"].refs["main"]].files
    assert {"README.md", "config.json", "lineage.json", "metrics.jsonl", "model.safetensors"} <= files.keys()
    card = files["README.md"].read(0, 10**6).decode()
    for part in ("it **passed**", "for 3 steps", "plots/losses.png", "convert:", "train:"):
        assert part in card
    made = [entry["made"] for entry in json.loads(files["lineage.json"].read(0, 10**6))]
    assert made == ["conversion", "verification", "training"]

    hub.log.clear()
    again = user.warm().run("run", "shipped.yaml")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("unchanged, skipped") == 3
    assert hub.requests("PUT|/xorbs/|/commit/") == []


@pytest.mark.slow  # the whole chain again; test_run has the steps that fail
def test_a_push_that_fails_is_told_and_is_what_the_next_run_does(hub: Hub, user: Client) -> None:
    hub.plant(r"POST .*/commit/", times=1000, status=500)
    failed = user.warm().start("run", "shipped.yaml", code=QUICK).finish()
    assert failed.returncode == 1
    assert failed.stderr.count("Traceback") == 0
    for part in ("step 4 of 4, push, is not done", "status 500", "skips steps 1, 2 and 3, which are done"):
        assert part in failed.stderr
    assert hub.repos["someone/shipped"].find("main").files.keys() == {".gitattributes"}  # type: ignore[union-attr]

    hub.faults.clear()
    resumed = user.warm().run("run", "shipped.yaml")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("unchanged, skipped") == 3
    assert "model.safetensors" in hub.repos["someone/shipped"].find("main").files  # type: ignore[union-attr]


def test_without_a_token_nothing_is_begun(hub: Hub, user: Client) -> None:
    done = user.with_(HF_TOKEN="").upcycle("run", "shipped.yaml")
    assert done.returncode == 2
    assert "there is no token to write with" in done.stderr
    assert not (user.home / "start").exists()
    assert hub.repos == {}


@pytest.mark.slow
def test_the_packaged_recipe_ships_the_real_model(hub: Hub, user: Client, smollm2: Path, text: Path) -> None:
    (user.home / "book.txt").write_bytes(text.read_bytes())
    sets = (
        f"convert.model={smollm2.resolve()}",
        "convert.out=first",
        "train.out=second",
        "train.max_steps=2",
        "train.eval_every=2",
    )
    done = user.upcycle("run", "smollm2-4x135m", *(word for said in sets for word in ("--set", said)))
    assert done.returncode == 0, done.stderr
    repo = hub.repos["someone/smollm2-4x135m"]
    card = repo.commits[repo.refs["main"]].files["README.md"].read(0, 10**6).decode()
    assert "373,462,848" in card
    answer = user.upcycle(
        "generate", "someone/smollm2-4x135m", "What is the capital of France?", "--max-new-tokens", "8"
    )
    assert "Paris" in answer.stdout, answer.stderr
