"""A Hub, a storage or a cache that is not what it says: nothing false is believed, nothing is written elsewhere."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client import FETCH, Client, finish
from tests.hub.repos import Blob, Commit, Repo
from tests.hub.server import READS, Handler, Hub

SIZE = 1_000_000
STORED = "GET /storage/.*/model.safetensors"
WEIGHTS = os.urandom(SIZE)
FLIPPED = bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:]

WRONG: list[dict[str, Any]] = [
    *({"siblings": [{"rfilename": "config.json", "size": size}]} for size in (float("inf"), -5, "12", True, 2**63)),
    *({"siblings": [{"rfilename": name, "size": 2}]} for name in (3, None)),
    *({"siblings": siblings} for siblings in (None, "config.json", {"config.json": 2}, [1])),
    *({"sha": sha} for sha in ("../" * 13 + "x", "A" * 40, 1, "a" * 40 + "\n")),
]
"""What is put into a sound answer of the API in place of what is there."""


@pytest.fixture
def repo(hub: Hub) -> Repo:
    return hub.repo("org/model", {"config.json": b"{}", "model.safetensors": WEIGHTS})


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Handler], None]], None]:
    """Return a function that puts another answer in the place of the API's about a model."""

    def put(answer: Callable[[Handler], None]) -> None:
        monkeypatch.setattr(Handler, "_routes", staticmethod(lambda: [("GET /api/models/.*", answer), *READS]))

    return put


def stored_as(monkeypatch: pytest.MonkeyPatch, send: Callable[[Handler, Blob, dict[str, str]], None]) -> None:
    """Let `send` answer for the storage of the weights."""
    honest = Handler.send_range

    def send_range(self: Handler, blob: Blob, headers: dict[str, str]) -> None:
        (send if blob.content == WEIGHTS else honest)(self, blob, headers)

    monkeypatch.setattr(Handler, "send_range", send_range)


# -- names that become paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("since", [1, 2], ids=["from the first request on", "from the second on"])
@pytest.mark.parametrize("header", ["ETag", "X-Repo-Commit"])
def test_headers_do_not_become_paths(
    client: Client, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str, since: int
) -> None:
    honest, asked = Handler._send_file, 0

    def send(self: Handler, repo: Repo, commit: Commit, path: str, blob: Blob) -> None:
        nonlocal asked
        asked += self.command == "HEAD" and path == "config.json"
        if path == "config.json" and asked >= since:
            headers = {"ETag": f'"{blob.git_id}"', "X-Repo-Commit": commit.id} | {header: f'"{"../" * 5}escaped"'}
            self.send_blob(blob, 200, headers)
        else:
            honest(self, repo, commit, path, blob)

    monkeypatch.setattr(Handler, "_send_file", send)
    done = client.fetch("org/model")
    assert not list(tmp_path.rglob("escaped*"))
    if (header, since) == ("ETag", 1):
        message = "upcycle: error: org/model: config.json: the Hub does not say what it is\n"
        assert (done.returncode, done.stderr) == (1, message)
    else:
        assert done.returncode == 0, done.stderr
        assert {path.parent.name for path in client.cached("**/snapshots/*/*")} == {repo.refs["main"]}


@pytest.mark.parametrize("links", ["", "1"], ids=["links", "no links"])
def test_the_client_finds_what_was_fetched(hub: Hub, client: Client, links: str) -> None:
    """Of two files with the same content there is one blob; without links the second is a copy."""
    hub.repo("org/model", {"config.json": b"{}", "generation_config.json": b"{}", "model.safetensors": WEIGHTS})
    directory = client.with_(HF_HUB_DISABLE_SYMLINKS=links).download("org/model")
    names = ("config.json", "generation_config.json", "model.safetensors")
    read = f"from huggingface_hub import hf_hub_download as get\nfor name in {names}: print(get('org/model', name))"
    found = client.with_(HF_HUB_OFFLINE="1").python(read).split()
    assert found == [str(directory / name) for name in names]
    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    assert (directory / "generation_config.json").read_bytes() == b"{}"
    assert {path.is_symlink() for path in directory.iterdir()} == {not links}
    before = len(hub.requests("/resolve/|/storage/"))
    assert client.with_(HF_HUB_DISABLE_SYMLINKS=links).download("org/model") == directory
    assert len(hub.requests("/resolve/|/storage/")) == before


# -- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_wrong_bytes_are_not_kept(
    hub: Hub,
    client: Client,
    repo: Repo,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    stored_as(
        monkeypatch,
        lambda self, blob, headers: self.send_blob(
            Blob(FLIPPED) if len(hub.requests(STORED)) <= times else blob, 200, headers
        ),
    )
    done = client.fetch("org/model")
    assert len(hub.requests(STORED)) == 2
    if times == 1:
        assert done.returncode == 0, done.stderr
        assert (Path(done.stdout[:-1]) / "model.safetensors").read_bytes() == WEIGHTS
    else:
        found, expected = (hashlib.sha256(data).hexdigest()[:16] for data in (FLIPPED, WEIGHTS))
        assert (done.returncode, done.stderr) == (
            1,
            "upcycle: error: org/model: model.safetensors: another content came than the Hub announced; "
            f"its SHA-256 is {found}..., expected {expected}...\n",
        )
        assert not client.cached("**/model.safetensors")
        assert [path.name for path in client.cached("**/blobs/*")] == [Blob(b"{}").git_id]


def test_a_whole_body_in_place_of_the_rest(
    hub: Hub,
    client: Client,
    repo: Repo,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored_as(monkeypatch, lambda self, blob, headers: self.send_blob(blob, 203, headers))
    hub.plant(STORED, after=5000)
    assert (client.download("org/model") / "model.safetensors").read_bytes() == WEIGHTS
    assert len(hub.requests(STORED)) == 2


@pytest.mark.parametrize("headers", [{}, {"Content-Range": f"bytes 1-{SIZE - 1}/{SIZE}"}], ids=["none", "another"])
def test_a_part_must_be_the_one_that_was_asked_for(
    client: Client,
    repo: Repo,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str],
) -> None:
    stored_as(monkeypatch, lambda self, blob, _: self.send_blob(blob, 206, headers))
    done = client.fetch("org/model")
    assert done.returncode == 1
    assert "another part of the file came than was asked for" in done.stderr


# -- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "left"), [("model.safetensors", SIZE - 100), ("config.json", 0)])
def test_a_file_of_the_wrong_size_is_fetched_again(client: Client, repo: Repo, file: str, left: int) -> None:
    directory = client.download("org/model")
    os.truncate((directory / file).resolve(), left)
    assert (client.download("org/model") / file).read_bytes() == repo.commits[directory.name].files[file].content


def test_a_cache_that_cannot_be_written(hub: Hub, client: Client, repo: Repo) -> None:  # noqa: ARG001
    """It may hold everything; where the folder of another model is to be made, nothing goes on where it stopped."""
    directory = client.download("org/model")
    (client.cached("**/refs/main")[0]).unlink()
    for path in client.cached("models--org--model/refs"):
        path.rmdir()
        path.write_bytes(b"")  # a file where a folder is needed: refused to any user
    assert client.download("org/model") == directory
    hub.repo("org/other", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    (client.home / "hub/models--org--other").write_bytes(b"")
    done = client.fetch("org/other")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "models--org--other" in done.stderr
    assert "goes on" not in done.stderr


@pytest.mark.parametrize("tags", [("v", "v/1"), ("v/1", "v")])
def test_tags_that_exclude_each_other_as_files(client: Client, repo: Repo, tags: tuple[str, str]) -> None:
    for tag in tags:
        repo.refs[tag] = repo.refs["main"]
        assert client.download(f"org/model@{tag}").name == repo.refs["main"]
    assert not client.cached("**/*.new")


def test_a_cache_without_a_tokenizer(hub: Hub, client: Client) -> None:
    hub.repo("org/model", {"config.json": b"{}", "tokenizer.json": b"[1]", "model.safetensors": WEIGHTS})
    load = "from huggingface_hub import hf_hub_download as get\n"
    client.python(load + "for name in ('config.json', 'model.safetensors'): get('org/model', name)")
    done = client.with_(HF_HUB_OFFLINE="1").fetch("org/model")
    words = "org/model: the cache holds no tokenizer, and the Hub cannot be asked: the output will have none\n"
    assert done.returncode == 0
    assert done.stderr.endswith(words)
    assert client.fetch("org/model").stderr == ""
    assert client.with_(HF_HUB_OFFLINE="1").fetch("org/model").stderr == ""


# -- the API ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", WRONG, ids=lambda change: str(change)[:60])
def test_an_answer_of_the_wrong_form(
    hub: Hub, client: Client, repo: Repo, answers: Callable[..., None], change: dict[str, Any]
) -> None:
    commit = repo.commits[repo.refs["main"]]
    answers(lambda self: self.send_json(repo.info(commit, blobs=True) | change))
    refuse_to_believe(hub, client)


@pytest.mark.parametrize(
    "body", [b"[" * 200_000, b"[1]", b"", b"\xff\xfe{}", b'{"a":' * 100_000, b" " * 33_000_000 + b"{}"],
    ids=["deep", "list", "empty", "UTF-16", "deep objects", "long"],
)  # fmt: skip
def test_an_answer_that_is_no_object(
    hub: Hub,
    client: Client,
    repo: Repo,  # noqa: ARG001
    answers: Callable[..., None],
    body: bytes,
) -> None:
    answers(lambda self: self.send_blob(Blob(body), 200, {"Content-Type": "application/json"}))
    refuse_to_believe(hub, client)


def test_an_answer_without_an_end(
    hub: Hub,
    client: Client,
    repo: Repo,  # noqa: ARG001
    answers: Callable[..., None],
    tmp_path: Path,
) -> None:
    with (tmp_path / "endless").open("wb") as file:
        file.truncate(4_000_000_000)
    answers(lambda self: self.send_blob(Blob(tmp_path / "endless"), 200, {}))
    refuse_to_believe(hub, client)
    assert hub.sent("/api/") < 60_000_000


def refuse_to_believe(hub: Hub, client: Client) -> None:
    done = finish(client.start(code=FETCH.format("org/model")))
    message = f"upcycle: error: org/model: {hub.url} does not answer as a Hub does\n"
    assert (done.returncode, done.stderr) == (1, message)
