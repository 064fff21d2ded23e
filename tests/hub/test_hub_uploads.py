"""Uploads to the Hub of the tests by the real client: those that break, damage, chunks, and a Hub by hand."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.hub.access import TOKEN
from tests.hub.calls import API, UPLOAD, ask, hashes, remote
from tests.hub.cas import CAS
from tests.hub.client import Client, finish
from tests.hub.damage import damage, flipped, lost, truncated
from tests.hub.repos import Repo
from tests.hub.server import Handler, Hub

SIZE = 3_000_000
PUT = "PUT /upload/"


@pytest.fixture(scope="module")
def weights() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def repo(hub: Hub, weights: bytes) -> Repo:
    return hub.repo("someone/model", {"config.json": b"{}", "model.safetensors": weights})


@pytest.fixture
def user(client: Client) -> Client:
    """Who may write, by LFS."""
    return client.with_token().with_(HF_HUB_DISABLE_XET="1")


@pytest.fixture
def folder(tmp_path: Path, weights: bytes) -> Path:
    """What is pushed: a large file twice, with a part of it, and a small one."""
    made = tmp_path / "folder"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model-1.safetensors").write_bytes(weights)
    (made / "model-2.safetensors").write_bytes(weights + weights[: SIZE // 2])
    return made


# -- uploads that break, and what is stored ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [{"status": 500}, {"status": 429, "headers": {"Retry-After": "0"}}, {"status": 503}, {}],
    ids=["500", "429", "503", "reset"],
)
def test_faults_in_the_middle_of_an_upload(hub: Hub, user: Client, folder: Path, fault: dict[str, Any]) -> None:
    hub.repo("someone/model", {})
    planted = hub.plant(PUT, upload_after=1_000_000, **fault)
    user.python(UPLOAD.format(str(folder)))
    assert planted.reached.is_set()
    assert remote(hub.repos["someone/model"]) == hashes(folder)
    struck, *others = sorted(hub.requests(PUT), key=lambda request: request.received)
    assert (struck.received, struck.status) == (1_000_000, fault.get("status", 0))
    assert [request.received for request in others] == [SIZE, SIZE * 3 // 2]
    assert not list(hub.store.glob("lfs/coming.*"))


def test_a_second_upload_sends_nothing(hub: Hub, user: Client, folder: Path) -> None:
    repo = hub.repo("someone/model", {})
    hub.part_size = 1_000_000
    user.python(UPLOAD.format(str(folder)))
    assert remote(repo) == hashes(folder)
    assert [len(hub.requests(f"{PUT}.*/{part}")) for part in (1, 3, 4, 5, 6)] == [2, 2, 1, 1, 0]
    assert hub.received(PUT) == SIZE * 5 // 2
    before = repo.refs["main"]
    user.python(UPLOAD.format(str(folder)))
    assert (hub.received(PUT), repo.refs["main"]) == (SIZE * 5 // 2, before)


def test_what_is_not_there_is_not_committed(hub: Hub, user: Client, repo: Repo) -> None:
    before = dict(repo.refs)
    out = ask(
        user,
        """
from huggingface_hub.utils import get_session
http = get_session()
oid = "0" * 64
lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": {"path": "m.bin", "oid": oid}}]
body = "".join(json.dumps(line) + "\\n" for line in lines)
head = api._build_hf_headers()
sent = http.post(f"{api.endpoint}/api/models/{name}/commit/main", content=body, headers=head)
put = http.put(f"{api.endpoint}/upload/{oid}", content=b"something else")
out = [sent.status_code, sent.json()["error"], put.status_code]
""",
    )
    assert out[::2] == [400, 400]
    assert out[1].endswith("Offending file: - m.bin")
    assert (repo.refs, hub.uploads) == (before, {})


@pytest.mark.parametrize("xet", ["1", ""], ids=["LFS", "chunks"])
def test_damage(hub: Hub, user: Client, folder: Path, xet: str) -> None:
    repo = hub.repo("someone/model", {})
    user = user.with_(HF_HUB_DISABLE_XET=xet)
    hub.corrupt(r"model-1", flipped)
    hub.corrupt(r"model-2", truncated)
    user.python(UPLOAD.format(str(folder)))
    damage(hub, repo, "config.json", lost)
    tell = "out = {f.path: [f.size, f.lfs and f.lfs.sha256] for f in api.list_repo_tree(name)}"
    found, wanted = ask(user, tell), hashes(folder)
    assert {path: size for path, (size, _) in found.items()} == {
        "model-1.safetensors": SIZE, "model-2.safetensors": SIZE * 3 // 2 - 1,
    }  # fmt: skip
    assert all(oid not in wanted.values() for _, oid in found.values())
    user.python(UPLOAD.format(str(folder)))
    assert remote(repo) == wanted


# -- chunks -----------------------------------------------------------------------------------------------------------

READ = API + "print(api.snapshot_download(name, cache_dir='{0}'))"
BLOCKS, SHARDS = "POST /v1/xorbs/", "POST /v2/shards"


@pytest.fixture
def chunker(client: Client) -> Client:
    """Who may write, by chunks, and does not wait long before another attempt."""
    return client.with_token().with_(HF_XET_CLIENT_RETRY_BASE_DELAY="10ms")


@pytest.mark.parametrize("cas", ["http", "local"])
def test_chunks_come_back(hub: Hub, chunker: Client, folder: Path, cas: str) -> None:
    repo, hub.cas = hub.repo("someone/model", {}), cas
    chunker.python(UPLOAD.format(str(folder)))
    assert hub.requests(PUT) == []
    assert remote(repo) == hashes(folder)
    once = hub.chunk_bytes()
    assert SIZE < once < 2.2 * SIZE
    read = Path(chunker.python(READ.format("a"))[:-1])
    assert hub.requests("GET /storage/") == []
    assert hashes(read) == hashes(folder)
    plain = Path(chunker.with_(HF_HUB_DISABLE_XET="1").python(READ.format("b"))[:-1])
    assert len(hub.requests("GET /storage/")) == 2
    assert hashes(plain) == hashes(read)
    (folder / "model-3.safetensors").write_bytes((folder / "model-1.safetensors").read_bytes())
    other = Client(hub, chunker.home.with_name("other")).with_token()
    other.python(UPLOAD.format(str(folder)))
    assert remote(repo) == hashes(folder)
    assert hub.chunk_bytes() == once
    assert bool(hub.requests(SHARDS)) == (cas == "http")
    assert len(hub.requests(BLOCKS)) == (cas == "http")


@pytest.mark.parametrize("pattern", [BLOCKS, SHARDS], ids=["blocks", "shards"])
def test_faults_in_the_middle_of_chunks(hub: Hub, chunker: Client, folder: Path, pattern: str) -> None:
    repo = hub.repo("someone/model", {})
    faults: list[dict[str, Any]] = [{"status": 500}, {"status": 429, "headers": {"Retry-After": "0"}}, {}]
    planted = [hub.plant(pattern, upload_after=1_000, **fault) for fault in faults]
    chunker.python(UPLOAD.format(str(folder)))
    assert all(fault.reached.is_set() for fault in planted)
    assert [request.status for request in hub.requests(pattern)] == [500, 429, 0, 200]
    assert remote(repo) == hashes(folder)
    read = Path(chunker.python(READ.format("a"))[:-1])
    assert hashes(read) == hashes(folder)


def test_killed_in_the_middle_of_an_upload(hub: Hub, user: Client, folder: Path) -> None:
    repo = hub.repo("someone/model", {})
    planted = hub.plant(PUT, upload_after=SIZE + 1, hold=True)
    process = user.start(code=UPLOAD.format(str(folder)))
    assert planted.reached.wait(60)
    process.kill()
    finish(process)
    assert remote(repo) == {}
    user.python(UPLOAD.format(str(folder)))
    assert remote(repo) == hashes(folder)
    larger = hashes(folder)["model-2.safetensors"]
    assert [request.received for request in hub.requests(PUT + larger)] == [SIZE + 1, SIZE * 3 // 2]


def test_a_shard_needs_its_blocks(hub: Hub, chunker: Client, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.repo("someone/model", {})
    monkeypatch.setattr("tests.hub.cas.CAS", [("POST /v1/xorbs/.*", forgetful), *CAS])
    done = finish(chunker.start(code=UPLOAD.format(str(folder))))
    assert done.returncode == 1
    assert [request.status for request in hub.requests(SHARDS)] == [400]
    assert remote(repo) == {}


def forgetful(answer: Handler) -> None:
    """Say that a block is there, and keep nothing."""
    answer.send_json({"was_inserted": True})


# -- by hand ----------------------------------------------------------------------------------------------------------


INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""Under a shell's `&` Ctrl-C is ignored, and children inherit that."""


def test_a_hub_in_the_foreground(tmp_path: Path) -> None:
    code = f"{INTERRUPTIBLE}; import runpy; runpy.run_module('tests.hub', run_name='__main__')"
    words = [sys.executable, "-c", code, "--dir", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        fields = dict(line.removeprefix("export ").rstrip().split("=") for line in lines[1:])
        assert fields == {"HF_ENDPOINT": lines[0].split()[-1], "HF_TOKEN": TOKEN}
        asked = "from huggingface_hub import HfApi; print(HfApi().whoami()['name'])"
        user = subprocess.run(
            [sys.executable, "-c", asked], env=os.environ | fields | {"HF_HUB_OFFLINE": "0"},
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        assert user.stdout == "someone\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0
