"""Downloads that are cut off, killed, refused for a while or damaged, and what goes to the Hub and comes back."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client import FETCH, Client, finish
from tests.hub.repos import Repo
from tests.hub.server import Hub, serving

SIZE = 12_000_000
STORED = "GET /storage/.*/model.safetensors"
DOWNLOAD = "from upcycle.hub.client import download; print(download('org/model'))"

INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""Under a shell's `&` Ctrl-C is ignored, and children inherit that."""


@pytest.fixture(scope="module")
def weights() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def repo(hub: Hub, weights: bytes) -> Repo:
    return hub.repo("org/model", {"config.json": b"{}", "tokenizer.json": b"[1]", "model.safetensors": weights})


@pytest.fixture
def chunked(hub: Hub, repo: Repo) -> Repo:
    repo.keep_in_chunks(hub.store)
    return repo


@pytest.fixture(scope="module", autouse=True)
def outage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Hub that always fails, and two users who wait for it while the other tests run."""
    place = tmp_path_factory.mktemp("outage")
    with serving(place / "cas") as hub:
        hub.repo("org/model", {"config.json": b"{}", "model.safetensors": b"?"})
        hub.plant("/api/models/", times=1000, status=500)
        users = [Client(hub, place / name) for name in ("new", "known")]
        snapshot = users[1].home / "hub/models--org--model/snapshots" / hub.repos["org/model"].refs["main"]
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_bytes(b"{}")
        (snapshot / "model.safetensors").write_bytes(b"?")
        (snapshot.parent.parent / "refs").mkdir()
        (snapshot.parent.parent / "refs/main").write_text(snapshot.name)
        waiting = [users[0].start(code=FETCH.format("org/model")), users[1].start(code=DOWNLOAD)]
        yield hub, waiting
        for process in waiting:  # where their test was not chosen
            if process.poll() is None:
                process.kill()
                finish(process)


def partial(client: Client) -> Path:
    """What an interrupted download leaves of the weights."""
    (path,) = client.cached("models--org--model/blobs/*.upcycle.incomplete")
    return path


def standing_still(hub: Hub, client: Client, after: int, code: str = DOWNLOAD) -> "subprocess.Popen[str]":
    """Return a download that has `after` bytes and waits for more."""
    fault = hub.plant(STORED, after=after, hold=True)
    process = client.start(code=code)
    assert fault.reached.wait(60)
    while partial(client).stat().st_size < after:
        assert process.poll() is None
        time.sleep(0.005)
    return process


def interrupt(hub: Hub, client: Client, after: int) -> Path:
    """Kill a download when it has `after` bytes; return what it leaves."""
    process = standing_still(hub, client, after)
    process.kill()
    finish(process)
    return partial(client)


# -- which files ------------------------------------------------------------------------------------------------------


def test_what_is_needed_is_taken_and_nothing_else(hub: Hub, client: Client) -> None:
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    wanted = {
        "config.json": b"{}", "generation_config.json": b"{1}", "tokenizer.json": b"{2}", "tokenizer.model": b"3",
        "tokenizer_config.json": b"{4}", "special_tokens_map.json": b"{5}", "chat_template.jinja": b"6",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1-of-2.safetensors": b"7", "model-2-of-2.safetensors": b"8",
    }  # fmt: skip
    others = {
        ".gitattributes": b"", "README.md": b"", "consolidated.safetensors": b"9", "pytorch_model.bin": b"9",
        "original/model.safetensors": b"9", "model-3-of-2.safetensors": b"9", "params.json": b"9", "x.gguf": b"9",
    }  # fmt: skip
    hub.repo("org/model", wanted | others)
    directory = client.download("org/model")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == wanted
    before = len(hub.log)
    assert client.download("org/model") == directory
    asked = [request.path.rpartition("/")[2] for request in hub.log[before:]]
    assert asked[-2:] == ["main", "model.safetensors.index.json"]
    assert not any(request.method == "HEAD" for request in hub.log[before:])


def test_pickled_weights_when_they_are_asked_for(hub: Hub, client: Client) -> None:
    index = {"weight_map": {"a": "pytorch_model-1.bin"}}
    files = {"config.json": b"{}", "pytorch_model.bin.index.json": json.dumps(index).encode()}
    hub.repo("org/model", {**files, "pytorch_model-1.bin": b"7", "training_args.bin": b"8"})
    assert {path.name for path in client.download("org/model", pickle=True).iterdir()} == {
        *files,
        "pytorch_model-1.bin",
    }
    with pytest.raises(AssertionError, match="holds pickled weights only, which can run code"):
        client.download("org/model")


# -- interrupted ------------------------------------------------------------------------------------------------------


def test_a_download_that_was_killed_goes_on(hub: Hub, client: Client, repo: Repo, weights: bytes) -> None:  # noqa: ARG001
    left = interrupt(hub, client, 8_000_000)
    assert left.read_bytes() == weights[:8_000_000]
    assert not client.cached("**/refs/main")
    directory = client.download("org/model")
    assert (directory / "model.safetensors").read_bytes() == weights
    assert [request.range for request in hub.requests(STORED)] == ["bytes=0-11999999", "bytes=8000000-11999999"]
    assert hub.sent(STORED) < 1.01 * SIZE
    assert not client.cached("**/*.incomplete")
    assert client.cached("**/refs/main")


@pytest.mark.parametrize(
    ("sign", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ctrl_c_says_what_is_left(hub: Hub, client: Client, repo: Repo, sign: int, code: int, word: str) -> None:  # noqa: ARG001
    command = INTERRUPTIBLE + FETCH.format("org/model")
    process = standing_still(hub, client.with_(HF_HUB_DOWNLOAD_TIMEOUT="1"), 8_000_000, command)
    process.send_signal(sign)
    done = finish(process)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"upcycle: {word}; run it again, the download goes on where it stopped\n"
    assert (client.download("org/model") / "model.safetensors").stat().st_size == SIZE
    assert hub.sent(STORED) < 1.01 * SIZE


def test_two_at_once_share_a_download(hub: Hub, client: Client, repo: Repo, weights: bytes) -> None:  # noqa: ARG001
    both = [client.start(code=DOWNLOAD) for _ in range(2)]
    directories = {finish(process).stdout for process in both}
    assert len(directories) == 1
    assert (Path(directories.pop()[:-1]) / "model.safetensors").read_bytes() == weights
    assert hub.sent(STORED) < 1.01 * SIZE


def test_a_beginning_that_is_damaged_is_thrown_away(hub: Hub, client: Client, repo: Repo, weights: bytes) -> None:  # noqa: ARG001
    left = interrupt(hub, client, 8_000_000)
    with left.open("r+b") as file:
        file.write(b"0123456789")
    directory = client.download("org/model")
    assert (directory / "model.safetensors").read_bytes() == weights
    assert hub.sent(STORED) > 2 * SIZE


def test_chunks_go_on_where_they_stopped(hub: Hub, client: Client, chunked: Repo, weights: bytes) -> None:
    """The chunk store can be read from any byte on; what comes of it passes the server by."""
    (oid,) = chunked.xet
    left = client.home / f"hub/models--org--model/blobs/{oid}.upcycle.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(weights[:7_654_321])
    told = client.python(
        "from upcycle.hub import transfer\n"
        "stream = transfer._xet_stream\n"
        "def loud(xet, start, size):\n"
        "    count = 0\n"
        "    for data in stream(xet, start, size):\n"
        "        count += len(data)\n"
        "        yield data\n"
        "    if size > 1000: print(start, count)\n"
        "transfer._xet_stream = loud\n" + DOWNLOAD
    )
    (count, directory) = told.splitlines()
    assert count == f"7654321 {SIZE - 7_654_321}"
    assert (Path(directory) / "model.safetensors").read_bytes() == weights
    assert hub.requests(STORED) == []
    assert len(hub.requests("/xet-read-token/")) == 1


def test_http_takes_over_where_the_chunk_store_fails(hub: Hub, client: Client, chunked: Repo, weights: bytes) -> None:  # noqa: ARG001
    hub.store = hub.store / "moved"
    assert (client.download("org/model") / "model.safetensors").read_bytes() == weights
    assert [request.range for request in hub.requests(STORED)] == ["bytes=0-11999999"]


def test_without_xet_http_is_used(hub: Hub, client: Client, chunked: Repo, weights: bytes) -> None:  # noqa: ARG001
    directory = client.with_(HF_HUB_DISABLE_XET="1").download("org/model")
    assert (directory / "model.safetensors").read_bytes() == weights
    assert len(hub.requests(STORED)) == 1
    assert hub.requests("/xet-read-token/") == []


# -- faults that pass, and those that do not --------------------------------------------------------------------------


def test_connections_that_break_are_made_again(hub: Hub, client: Client, repo: Repo, weights: bytes) -> None:  # noqa: ARG001
    hub.plant(STORED, after=5_000_000)
    hub.plant(STORED, after=5_000_000)
    assert (client.download("org/model") / "model.safetensors").read_bytes() == weights
    assert [request.range for request in hub.requests(STORED)] == [
        "bytes=0-11999999", "bytes=5000000-11999999", "bytes=10000000-11999999",
    ]  # fmt: skip
    assert hub.sent(STORED) < 1.01 * SIZE


def test_a_server_without_ranges_sends_it_again(hub: Hub, client: Client, repo: Repo, weights: bytes) -> None:  # noqa: ARG001
    hub.ranges = False
    hub.plant(STORED, after=5_000_000)
    assert (client.download("org/model") / "model.safetensors").read_bytes() == weights
    assert hub.sent(STORED) < SIZE + 5_100_000


def test_errors_that_pass(hub: Hub, client: Client, repo: Repo, weights: bytes) -> None:  # noqa: ARG001
    hub.plant("GET /api/models/", status=429, headers={"Retry-After": "0"})
    hub.plant("HEAD .*config.json", status=500)
    hub.plant(STORED, status=503)
    assert (client.download("org/model") / "model.safetensors").read_bytes() == weights


def test_a_file_that_is_refused_keeps_the_others(hub: Hub, client: Client, repo: Repo) -> None:  # noqa: ARG001
    hub.plant(STORED, times=99, status=403)
    done = client.fetch("org/model")
    message = "upcycle: error: org/model: the Hub refuses access (status 403); `hf auth login` renews the token\n"
    assert (done.returncode, done.stderr) == (2, message)
    assert len(client.cached("**/snapshots/*/*")) == 2


def test_a_full_disk_is_one_line(hub: Hub, client: Client, repo: Repo) -> None:  # noqa: ARG001
    code = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
    done = finish(client.start(code=code + FETCH.format("org/model")))
    assert done.returncode == 1
    assert done.stderr.endswith("File too large; run it again, the download goes on where it stopped\n")
    assert partial(client).stat().st_size == 10**6


def test_a_hub_that_always_fails(outage: Any) -> None:
    hub, (new, known) = outage
    done = finish(new)
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line == (
        "upcycle: error: org/model: the Hub fails (status 500), and it is neither a directory nor in the Hub cache"
    )
    done = finish(known)
    assert done.stdout.split("/")[-2:] == ["snapshots", hub.repos["org/model"].refs["main"] + "\n"]
    assert len(hub.requests("/api/models/")) == 10  # five of each


# -- what goes to the Hub ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("xet", ["", "1"], ids=["chunks", "LFS"])
def test_the_client_can_upload(hub: Hub, client: Client, weights: bytes, tmp_path: Path, xet: str) -> None:
    """Nothing of upcycle's yet: that the server is one which the client can write to."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "model.safetensors").write_bytes(weights)
    user = client.with_token().with_(HF_HUB_DISABLE_XET=xet)
    upload = (
        "from huggingface_hub import HfApi; api = HfApi(); print(api.create_repo('someone/new', private=True))\n"
        f"print(api.upload_folder(repo_id='someone/new', folder_path={str(folder)!r}).oid)"
    )
    user.python(upload)
    made = hub.repos["someone/new"]
    head = made.find("main")
    assert head is not None
    assert (made.access, set(head.files)) == ("private", {".gitattributes", "README.md", "model.safetensors"})
    assert head.files["model.safetensors"].size == SIZE
    assert bool(hub.requests("PUT /upload/")) == bool(xet)
    if xet:
        read = "from huggingface_hub import hf_hub_download as get; print(get('someone/new', 'model.safetensors'))"
        assert Path(user.python(read)[:-1]).read_bytes() == weights
