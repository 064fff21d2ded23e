"""`upcycle push` with the real client against a Hub on loopback: what arrives, what comes back, what is asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import run_convert
from tests.hub.access import READ_TOKEN, TOKEN
from tests.hub.server import Hub
from tests.models import SMALL
from tests.pushing import UPLOADS, WAYS, WRITES, Author, content, held, same
from upcycle import __version__

NAME = "someone/moe"

COPY_OF = Callable[[Path], Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with four experts that are the same."""
    return run_convert(Path("demo:tiny"), tmp_path_factory.mktemp("pushed") / "moe")


@pytest.fixture
def author(hub: Hub, tmp_path: Path) -> Author:
    """Who may write, by chunks."""
    return Author(hub, tmp_path / "home")


@pytest.fixture(params=WAYS)
def either(request: pytest.FixtureRequest, author: Author) -> Author:
    """The same, in both ways that large files travel."""
    return author.with_(**WAYS[request.param])


# -- there and back ---------------------------------------------------------------------------------------------------

PULL = """
import json, torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = torch.arange(3, 131).view(2, 64)
found = []
for place in ({0!r}, {1!r}):
    model, told = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(place)("In the beginning")["input_ids"]
    found.append((model(ids).logits, words, told))
(here, words, _), (there, same_words, told) = found
card = ModelCard.load({1!r})
print(json.dumps([type(model).__name__, torch.equal(here, there), bool(here.std() > 0), words == same_words,
                  sorted(told["missing_keys"]), sorted(told["unexpected_keys"]), card.data.to_dict(), card.text]))
"""


def test_what_is_pushed_comes_back(hub: Hub, either: Author, model: Path, tmp_path: Path) -> None:
    told = either.push(model, NAME)
    repo = hub.repos[NAME]
    assert same(repo, model)
    assert told == {
        "repo": NAME, "url": f"{hub.url}/{NAME}", "kind": "model", "revision": "main", "commit": repo.refs["main"],
        "uploaded": sorted([path.name for path in model.iterdir()] + ["README.md"]),
        "uploaded_bytes": sum(blob.size for blob in held(repo).values()), "unchanged": [], "removed": [], "left": [],
        "before": None, "private": False, "dry_run": False,
        "notes": ["the card names no license: a README.md with that at its head does"],
    }  # fmt: skip
    by_lfs = "HF_HUB_DISABLE_XET" in either.fields
    assert [bool(hub.requests(line)) for line in ("PUT /upload/", "POST /v1/xorbs/")] == [by_lfs, not by_lfs]
    reader = Author(hub, tmp_path / "reader", {})  # of an empty cache, without a token
    kind, equal, computes, words, missing, unexpected, data, text = json.loads(
        reader.python(PULL.format(str(model), NAME)).splitlines()[-1]
    )
    assert (kind, equal, computes, words, missing, unexpected) == ("MixtralForCausalLM", True, True, True, [], [])
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert {"moe", "mixture-of-experts"} & set(data["tags"])
    assert f"upcycle {__version__}" in text or "upcycle" in text
    assert "2,624,640" in text


def test_pushed_again_nothing_is_sent(hub: Hub, either: Author, model: Path) -> None:
    first = either.push(model, NAME)
    before = len(hub.log)
    again = either.push(model, NAME)
    assert (again["uploaded"], again["uploaded_bytes"], again["commit"]) == ([], 0, first["commit"])
    assert again["unchanged"] == first["uploaded"]
    asked = [f"{request.method} {request.path}" for request in hub.log[before:]]
    assert all(line.startswith(("GET ", "HEAD ")) for line in asked), asked
    assert len(hub.repos[NAME].commits) == 2  # the Hub's own, and the model


def test_what_is_there_is_not_sent_again(hub: Hub, author: Author, model: Path, copy_of: COPY_OF) -> None:
    author.push(model, NAME)
    before = hub.received(UPLOADS)
    changed = copy_of(model)
    (changed / "upcycle.json").unlink()
    (changed / "generation_config.json").write_text('{"do_sample": true}')
    told = author.push(changed, NAME)
    assert (set(told["uploaded"]), told["removed"]) == ({"README.md", "generation_config.json"}, ["upcycle.json"])
    assert hub.received(UPLOADS) == before
    assert same(hub.repos[NAME], changed)


def test_experts_that_are_the_same_are_stored_once(hub: Hub, author: Author, tmp_path: Path) -> None:
    """Of an expert of 6 MB, that is; the client does not look for what is the same in much smaller pieces."""
    config = LlamaConfig(**{**SMALL, "hidden_size": 128, "intermediate_size": 8192, "num_hidden_layers": 1})
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    moe = run_convert(tmp_path / "dense", tmp_path / "moe")
    author.push(moe, NAME)
    dense, four = (size_of(directory) for directory in (tmp_path / "dense", moe))
    assert four > 3.9 * dense
    assert hub.chunk_bytes() < 1.1 * dense
    assert hub.received(UPLOADS) < 1.1 * dense


def size_of(model: Path) -> int:
    return (model / "model.safetensors").stat().st_size


def test_shards(hub: Hub, author: Author, tmp_path: Path) -> None:
    sharded = run_convert(Path("demo:tiny"), tmp_path / "sharded", max_shard_size="2MB")
    assert len(list(sharded.glob("model-*.safetensors"))) == 3
    author.push(sharded, NAME)
    assert same(hub.repos[NAME], sharded)


def test_from_python(hub: Hub, author: Author, model: Path) -> None:
    code = "from upcycle import Push, run; done = run(Push(model={!r}, repo={!r})); print(done.repo, done.commit)"
    assert author.python(code.format(str(model), NAME)) == f"{NAME} {hub.repos[NAME].refs['main']}\n"


def test_what_is_said(hub: Hub, author: Author, model: Path) -> None:
    first, again = (author.upcycle("push", model, NAME) for _ in range(2))
    names = "README.md, config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json"
    last = f"{hub.url}/{NAME}: 7 files, as they are here"
    commit = hub.repos[NAME].refs["main"][:8]
    uploaded, note, end = first.stdout.splitlines()
    assert uploaded.startswith(f"uploaded   {names} and 1 more (5.3")
    assert note == "note       the card names no license: a README.md with that at its head does"
    assert end == f"{last}; commit {commit}; public, made just now"
    assert again.stdout == f"unchanged  {names} and 1 more\n{note}\n{last}; nothing new\n"
    assert first.stderr == again.stderr == ""


# -- pull requests ----------------------------------------------------------------------------------------------------


def test_a_pull_request(hub: Hub, either: Author, model: Path, copy_of: COPY_OF) -> None:
    repo = hub.repo(NAME, {".gitattributes": b"", "notes.txt": b"1"})
    main = repo.refs["main"]
    told = either.push(model, NAME, "--create-pr", "--message", "Four experts")
    assert (told["revision"], told["url"]) == ("refs/pr/1", f"{hub.url}/{NAME}/discussions/1")
    assert told["commit"] == repo.refs["refs/pr/1"]
    assert [(pull.title, pull.status) for pull in repo.pulls] == [("Four experts", "open")]
    assert same_beside(repo, model, "refs/pr/1", {"notes.txt"})
    again = either.push(model, NAME, "--create-pr", "--message", "Four experts")
    assert (again["revision"], again["commit"], again["uploaded"]) == ("refs/pr/1", told["commit"], [])
    changed = copy_of(model)
    (changed / "generation_config.json").write_text("{}")
    (changed / "upcycle.json").unlink()
    third = either.push(changed, NAME, "--create-pr", "--message", "Four experts")
    assert (third["revision"], third["removed"]) == ("refs/pr/1", ["upcycle.json"])
    assert same_beside(repo, changed, "refs/pr/1", {"notes.txt"})
    assert (repo.refs["main"], len(repo.pulls)) == (main, 1)


def same_beside(repo: Any, directory: Path, revision: str, others: set[str]) -> bool:
    there = {path: blob for path, blob in held(repo, revision).items() if path not in others}
    return others <= held(repo, revision).keys() and {path: blob.sha256 for path, blob in there.items()} == {
        **{path.name: _sha256(path) for path in directory.iterdir()}, "README.md": there["README.md"].sha256,
    }  # fmt: skip


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_pull_request_of_another_title_is_another(hub: Hub, author: Author, model: Path) -> None:
    refs = [author.push(model, NAME, "--create-pr", *more)["revision"] for more in ([], ["--message", "Other"], [])]
    assert refs == ["refs/pr/1", "refs/pr/2", "refs/pr/1"]
    assert [pull.title for pull in hub.repos[NAME].pulls] == ["Upload model by upcycle", "Other"]
    hub.repos[NAME].pulls[0].status = "closed"
    assert author.push(model, NAME, "--create-pr")["revision"] == "refs/pr/3"
    assert not held(hub.repos[NAME])


def test_a_pull_request_to_the_repository_of_others(hub: Hub, author: Author, model: Path) -> None:
    repo = hub.repo("others/moe", {"config.json": b"{}"})
    assert author.push(model, "others/moe", "--create-pr")["revision"] == "refs/pr/1"
    assert set(held(repo)) == {"config.json"}
    assert same(repo, model, "refs/pr/1")


# -- where to ---------------------------------------------------------------------------------------------------------


def test_private(hub: Hub, author: Author, model: Path, tmp_path: Path) -> None:
    author.push(model, NAME, "--private")
    assert hub.repos[NAME].access == "private"
    read = f"from huggingface_hub import HfApi; print(len(HfApi().list_repo_files({NAME!r})))"
    assert author.python(read) == "8\n"
    stranger = Author(hub, tmp_path / "stranger", {}).start(code=read).finish()
    assert stranger.returncode == 1
    assert author.push(model, NAME)["uploaded"] == []  # it stays private
    assert author.push(model, NAME, "--private")["uploaded"] == []


def test_private_does_not_hide_what_is_public(hub: Hub, author: Author, model: Path) -> None:
    hub.repo(NAME, {"config.json": b"{}"})
    assert author.refused(model, NAME, "--private") == (
        f"{NAME}: is there and public, which --private does not change; its settings on the Hub do"
    )
    assert not hub.requests(WRITES)


@pytest.mark.parametrize("branch", ["v2", "work/shards"])
def test_branches(hub: Hub, author: Author, model: Path, branch: str) -> None:
    repo = hub.repo(NAME, {".gitattributes": b"", "notes.txt": b"1"})
    main = repo.refs["main"]
    told = author.push(model, NAME, "--revision", branch)
    assert (told["revision"], told["url"]) == (branch, f"{hub.url}/{NAME}/tree/{branch}")
    assert repo.refs == {"main": main, branch: told["commit"]}
    assert same_beside(repo, model, branch, {"notes.txt"})
    assert author.push(model, NAME, "--revision", branch)["uploaded"] == []
    assert author.push(model, NAME, "--revision", "main")["uploaded"] == told["uploaded"]


def test_into_a_pull_request(hub: Hub, author: Author, model: Path) -> None:
    author.push(model, NAME, "--create-pr")
    repo = hub.repos[NAME]
    repo.commit({"generation_config.json": b"{}"}, branch="refs/pr/1")
    told = author.push(model, NAME, "--revision", "refs/pr/1")
    assert (told["uploaded"], told["revision"]) == (["generation_config.json"], "refs/pr/1")
    assert told["url"] == f"{hub.url}/{NAME}/discussions/1"
    assert same(repo, model, "refs/pr/1")
    before = dict(repo.refs)
    line = author.refused(model, NAME, "--revision", "refs/pr/7")
    assert line == f"{NAME}: there is no refs/pr/7; --create-pr opens a pull request"
    assert repo.refs == before


def test_a_name_without_an_owner(hub: Hub, author: Author, model: Path) -> None:
    assert author.push(model, "moe")["repo"] == "someone/moe"
    assert author.push(model, "org/moe")["repo"] == "org/moe"
    assert set(hub.repos) == {"someone/moe", "org/moe"}


def test_the_title_of_the_commit(hub: Hub, author: Author, model: Path) -> None:
    author.push(model, NAME, "--message", "Four  experts ü")
    author.push(model, "someone/other")
    titles = [hub.repos[name].commits[hub.repos[name].refs["main"]].title for name in (NAME, "someone/other")]
    assert titles == ["Four  experts ü", "Upload model by upcycle"]


# -- without doing it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [TOKEN, READ_TOKEN])
def test_a_dry_run_changes_nothing(hub: Hub, author: Author, model: Path, token: str) -> None:
    reader = author.with_(HF_TOKEN=token)
    told = reader.push(model, NAME, "--dry-run", "--create-pr")
    assert (told["dry_run"], told["commit"], len(told["uploaded"])) == (True, None, 7)
    assert not hub.repos
    author.push(model, NAME)
    hub.repos[NAME].commit({"config.json": b"{}", "chat_template.jinja": b"x"})
    before = len(hub.log)
    told = reader.push(model, NAME, "--dry-run", "--revision", "new")
    assert (told["uploaded"], told["removed"]) == (["config.json"], ["chat_template.jinja"])
    assert told["uploaded_bytes"] == (model / "config.json").stat().st_size
    assert "nothing was changed" in reader.upcycle("push", model, NAME, "--dry-run").stdout
    assert {request.method for request in hub.log[before:]} == {"GET"}
    assert set(hub.repos[NAME].refs) == {"main"}


def test_a_dry_run_refuses_what_a_push_would(author: Author, model: Path, copy_of: COPY_OF) -> None:
    damaged = copy_of(model)
    (damaged / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is not what the receipt says" in author.refused(damaged, NAME, "--dry-run")


def test_a_card_that_is_not_wanted(hub: Hub, author: Author, model: Path) -> None:
    author.push(model, NAME, "--no-card")
    assert "README.md" not in held(hub.repos[NAME])
    hub.repos[NAME].commit({"README.md": b"mine"})
    assert author.push(model, NAME, "--no-card")["uploaded"] == []
    assert content(hub.repos[NAME], "README.md") == b"mine"
