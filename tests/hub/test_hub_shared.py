"""Models that the client has loaded by itself: since huggingface_hub 2.4 their blobs may be links into one store."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.hub.client import Client
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import CheckpointError
from upcycle.pipeline.locate import BUILT_IN

TINY = BUILT_IN["demo:tiny"]
LOAD = "from huggingface_hub import snapshot_download; print(snapshot_download('org/tiny'))"


@pytest.fixture
def snapshot(hub: Hub, client: Client) -> Path:
    """A snapshot in the cache of a user who has loaded the model with the client, through the chunk store."""
    repo = hub.repo("org/tiny", {path.name: path for path in TINY.iterdir()})
    repo.keep_in_chunks(hub.store)
    return Path(client.python(LOAD).split("\n")[0])


def test_what_the_client_has_loaded_is_converted(client: Client, snapshot: Path) -> None:
    done = client.upcycle("convert", "org/tiny", "moe", "--experts", "2")
    assert done.returncode == 0, done.stderr
    source = json.loads((client.home / "moe/upcycle.json").read_text())["source"]
    weights = hashlib.sha256((TINY / "model.safetensors").read_bytes()).hexdigest()
    assert source["name"] == "org/tiny"
    assert source["revision"] == snapshot.name
    assert source["etags"] == {"model.safetensors": weights}  # the Hub's own, not the store's


def test_a_link_out_of_the_cache_is_refused(client: Client, snapshot: Path) -> None:
    outside = client.home / "outside.safetensors"
    outside.write_bytes((TINY / "model.safetensors").read_bytes())
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="symbolic link out of the checkpoint"):
        open_checkpoint(snapshot)


def test_a_directory_called_snapshots_opens_no_other(tmp_path: Path) -> None:
    place = tmp_path / "repo/snapshots/rev"
    place.mkdir(parents=True)
    for path in TINY.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    (tmp_path / "weights").write_bytes((place / "model.safetensors").read_bytes())
    (place / "model.safetensors").unlink()
    (place / "model.safetensors").symlink_to(tmp_path / "weights")
    with pytest.raises(CheckpointError, match="symbolic link out of the checkpoint"):
        open_checkpoint(place)
