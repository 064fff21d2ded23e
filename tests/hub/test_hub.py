"""Models on the Hub: the real client and the command line, against a server on loopback."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import contents, edit_json, run_convert
from tests.hub.client import Client
from tests.hub.server import Hub
from tests.models import MISTRAL_7B, _shapes, save_dense, save_header
from upcycle.checkpoint.header import build_header, tensor_bytes
from upcycle.hub.client import is_hub_id

LLAMA_70B: dict[str, Any] = {
    **MISTRAL_7B, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 80,
}  # fmt: skip

CONVERSION = ("--experts", "4", "--top-k", "2")


@pytest.fixture
def one(tiny: Path, hub: Hub) -> Path:
    """A directory whose files are also the repository `org/tiny`."""
    hub.repo("org/tiny", files(tiny))
    return tiny


def files(directory: Path) -> dict[str, Any]:
    return {path.name: path for path in directory.iterdir()}


def save_shards(config: dict[str, Any], directory: Path, count: int) -> Path:
    """As `save_header`, in several files with an index."""
    named = _shapes(config)
    size = -(-len(named) // count)
    weight_map: dict[str, str] = {}
    for number in range(count):
        part = named[number * size : (number + 1) * size]
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        header = build_header([(tensor, "BF16", shape) for tensor, shape in part])
        with (directory / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + sum(tensor_bytes("BF16", shape) for _, shape in part))
        weight_map |= {tensor: name for tensor, _ in part}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def refused(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The one line in which a command said why it ended."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    *before, line = done.stderr.splitlines()
    assert line.startswith("upcycle: error: ")
    assert "Traceback" not in done.stderr
    assert all("retry" in said.lower() or "thrown while requesting" in said.lower() for said in before)
    return line.removeprefix("upcycle: error: ")


# -- which words are ids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt2", "org/name", "Org_1/na.me-2", "org/name@main", "a/b@v1.0", "a/b@refs/pr/1"])
def test_hub_ids(model: str) -> None:
    assert is_hub_id(model)


@pytest.mark.parametrize(
    "model",
    [
        "", ".", "..", "./x", "../x", "/x", "x/", "~/x", "a/b/c", "C:\\models\\x", "a\\b", "a b", "org/name@", "@main",
        "a--b", "a..b", "a/b.git", "a/.b", "-a/b", "a" * 97, "a/b@c d", "a/b@../../c", "a/b@/c", "a/b@c\n", "a/b\n",
    ],
)  # fmt: skip
def test_what_is_no_hub_id(model: str) -> None:
    assert not is_hub_id(model)


# -- plan -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(lambda directory: save_header(MISTRAL_7B, directory), id="7B in one file"),
        pytest.param(lambda directory: save_shards(LLAMA_70B, directory, 30), id="70B in 30 files"),
    ],
)
def test_plan_reads_headers_only(hub: Hub, client: Client, tmp_path: Path, save: Callable[[Path], Path]) -> None:
    (tmp_path / "model").mkdir()
    model = save(tmp_path / "model")
    hub.repo("org/big", {**files(model), "tokenizer.json": bytes(3_000_000), "consolidated.safetensors": b"?"})
    here, there = client.upcycle("plan", str(model), "--json"), client.upcycle("plan", "org/big", "--json")
    assert json.loads(there.stdout) == json.loads(here.stdout)
    assert 30_000 < hub.sent() < 1_000_000
    assert not client.cached("**/blobs/*")
    assert hub.requests("tokenizer|consolidated") == []


def test_a_server_that_does_not_know_ranges_is_cut_off(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.ranges = False
    model = save_header(MISTRAL_7B, tmp_path)
    hub.repo("org/big", {"config.json": model / "config.json", "model.safetensors": model / "model.safetensors"})
    assert client.upcycle("plan", "org/big").returncode == 0
    assert hub.sent() < 40_000_000  # of 14.5 GB: what fits into the buffers between two processes


def test_no_token_goes_to_another_origin(hub: Hub, client: Client, one: Path) -> None:  # noqa: ARG001
    assert client.with_token().upcycle("convert", "org/tiny", "out", *CONVERSION).returncode == 0
    stored = hub.requests("/storage/")
    assert {request.authorized for request in stored} == {False}
    assert {request.port for request in stored}.isdisjoint(request.port for request in hub.requests("/resolve/"))
    assert all(request.authorized for request in hub.requests("/api/models/|/resolve/"))


# -- convert ----------------------------------------------------------------------------------------------------------


def test_convert_gives_what_the_directory_gives(hub: Hub, client: Client, one: Path, tmp_path: Path) -> None:
    done = client.upcycle("convert", "org/tiny", str(tmp_path / "out"), *CONVERSION)
    assert done.returncode == 0, done.stderr
    made, wanted = contents(tmp_path / "out"), contents(run_convert(one, tmp_path / "wanted"))
    receipt = json.loads(made.pop("upcycle.json"))
    del wanted["upcycle.json"]
    assert made == wanted
    source = receipt["source"]
    weights = hashlib.sha256((one / "model.safetensors").read_bytes()).hexdigest()
    assert (source["name"], source["revision"]) == ("org/tiny", hub.repos["org/tiny"].refs["main"])
    assert source["etags"] == {"model.safetensors": weights}
    assert {request.path.split("/")[4] for request in hub.requests("/resolve/")} == {source["revision"]}


def test_revisions(hub: Hub, client: Client, one: Path, tmp_path: Path) -> None:
    """A tag and a commit stay what they were when the branch goes on."""
    other = save_dense("llama_odd_head", tmp_path / "other")
    repo = hub.repos["org/tiny"]
    first = repo.refs["main"]
    repo.refs["v1"] = first
    repo.commit(files(other))
    for revision, model in (("", other), ("@v1", one), (f"@{first}", one)):
        out = tmp_path / f"out{revision}"
        assert client.upcycle("convert", f"org/tiny{revision}", str(out), *CONVERSION).returncode == 0
        made, wanted = contents(out), contents(run_convert(model, tmp_path / f"wanted{revision}"))
        assert {**made, "upcycle.json": b""} == {**wanted, "upcycle.json": b""}
        assert json.loads(made["upcycle.json"])["source"]["revision"] == repo.refs.get(revision[1:] or "main", first)
    assert len(hub.requests("GET /storage/.*safetensors")) == 2 + 3  # each of two files once, and a header each time


def test_what_is_refused_is_not_downloaded(hub: Hub, client: Client, tiny: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    edit_json(model / "config.json", mlp_bias=True)
    hub.repo("org/biased", files(model))
    done = client.upcycle("convert", "org/biased", str(tmp_path / "out"))
    assert "mlp_bias" in refused(done, 2)
    assert not client.cached("**/blobs/*")
    assert hub.sent("safetensors") < 20_000


# -- who and what may be had ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("org/gated", "access to this model must be asked for on the Hub; then `hf auth login`"),
        ("org/private", "no such directory or Hub model; private models need `hf auth login`"),
        ("org/none", "no such directory or Hub model; private models need `hf auth login`"),
        ("org/tiny@v9", "no such revision; expected a branch, a tag or a full commit hash"),
        ("org/lost", "shards are missing; found 0 of 1, expected model-1.safetensors"),
        ("org/empty", "holds no weights; expected model.safetensors or model.safetensors.index.json"),
    ],
)
def test_one_line_says_what_is_wrong(hub: Hub, client: Client, one: Path, model: str, words: str) -> None:
    config = {"config.json": one / "config.json"}
    hub.repo("org/gated", files(one), access="gated")
    hub.repo("org/private", files(one), access="private")
    hub.repo("org/empty", {**config, "consolidated.safetensors": b"?"})
    hub.repo("org/lost", {**config, "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}'})
    assert refused(client.upcycle("plan", model), 2).startswith(f"{model}: {words}")
    if model in {"org/gated", "org/lost", "org/empty"}:  # found out on the way, and there is another way
        assert refused(client.fetch(model), 2).startswith(f"{model}: {words}")


@pytest.mark.parametrize("access", ["gated", "private"])
def test_a_token_opens_what_is_closed(hub: Hub, client: Client, tiny: Path, access: str) -> None:
    hub.repo("org/closed", files(tiny), access=access)
    assert client.with_token().upcycle("plan", "org/closed").returncode == 0
    assert client.with_(HF_TOKEN="hf_wrong").upcycle("plan", "org/closed").returncode == 2


# -- without a network ------------------------------------------------------------------------------------------------


def test_offline_the_cache_is_used(hub: Hub, client: Client, one: Path, tmp_path: Path) -> None:
    directory = client.download("org/tiny")
    assert contents(directory) == contents(one)
    asked = len(hub.log)
    offline = client.with_(HF_HUB_OFFLINE="1")
    assert offline.download("org/tiny") == directory
    assert offline.upcycle("convert", "org/tiny", str(tmp_path / "out"), *CONVERSION).returncode == 0
    assert json.loads((tmp_path / "out/upcycle.json").read_bytes())["source"]["revision"] == directory.name
    assert len(hub.log) == asked
    client.cached("models--org--tiny/snapshots/*/model.safetensors")[0].unlink()
    message = "org/tiny: the Hub must not be asked (HF_HUB_OFFLINE is set), and the Hub cache holds only a part of it"
    assert refused(offline.upcycle("plan", "org/tiny"), 2) == message


def test_offline_without_a_cache(client: Client) -> None:
    message = refused(client.with_(HF_HUB_OFFLINE="1").upcycle("plan", "org/none"), 2)
    assert message == (
        "org/none: the Hub must not be asked (HF_HUB_OFFLINE is set), "
        "and it is neither a directory nor in the Hub cache"
    )


def test_a_hub_that_cannot_be_reached(client: Client, one: Path) -> None:
    client.download("org/tiny")
    away = client.with_(HF_ENDPOINT="http://127.0.0.1:1")
    assert away.upcycle("plan", "org/tiny").stdout == client.upcycle("plan", str(one)).stdout
    message = refused(away.upcycle("plan", "org/none"), 1)
    assert message.startswith("org/none: the Hub cannot be reached (")
    assert message.endswith("), and it is neither a directory nor in the Hub cache")


def test_what_is_no_hub(hub: Hub, client: Client, one: Path) -> None:  # noqa: ARG001
    hub.plant("/api/models/", status=200)
    assert refused(client.upcycle("plan", "org/tiny"), 1) == f"org/tiny: {hub.url} does not answer as a Hub does"
