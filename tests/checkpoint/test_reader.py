"""A checkpoint directory is taken whole or not at all, and nothing in it leads out of it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import edit_json, raw_safetensors
from tests.models import save_dense
from upcycle.checkpoint.reader import is_plain_name, open_checkpoint, present_files
from upcycle.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The plain llama in shards of at most 15 KB."""
    return save_dense("llama", tmp_path / "sharded", max_shard_size="15KB")


@pytest.fixture
def single(tiny: Path, copy_of: Callable[[Path], Path]) -> Path:
    return copy_of(tiny)


def refusal(directory: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    return caught.value


def weight_map(directory: Path) -> dict[str, str]:
    return dict(json.loads((directory / INDEX).read_bytes())["weight_map"])


def shards(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.safetensors"))


# -- sound directories ------------------------------------------------------------------------------------------------


def test_single_file(single: Path) -> None:
    checkpoint = open_checkpoint(single)
    assert list(checkpoint.headers) == [SINGLE]
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.tensors["model.norm.weight"].shape == (32,)
    assert len(checkpoint.tensors) == 2 * 9 + 3


def test_shards(sharded: Path, single: Path) -> None:
    checkpoint, whole = open_checkpoint(sharded), open_checkpoint(single)
    assert list(checkpoint.headers) == shards(sharded)
    assert len(checkpoint.headers) > 2
    assert set(checkpoint.tensors) == set(whole.tensors)
    for name, spec in checkpoint.tensors.items():
        other = whole.tensors[name]
        assert spec.path == sharded / weight_map(sharded)[name]
        mine, theirs = (s.path.read_bytes()[s.offset : s.offset + s.nbytes] for s in (spec, other))
        assert mine == theirs


def test_an_index_may_name_the_single_file(single: Path) -> None:
    names = open_checkpoint(single).tensors
    (single / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, SINGLE)}))
    assert list(open_checkpoint(single).headers) == [SINGLE]


def test_tokenizer_files_in_a_fixed_order(single: Path) -> None:
    for name in ("vocab.json", "tokenizer.json", "chat_template.jinja", "README.md"):
        (single / name).write_text("{}")
    names = [path.name for path in open_checkpoint(single).tokenizer_files]
    assert names == ["tokenizer.json", "vocab.json", "chat_template.jinja"]


# -- what is there ----------------------------------------------------------------------------------------------------


def test_no_directory(tmp_path: Path) -> None:
    assert str(refusal(tmp_path / "nowhere")) == f"{tmp_path / 'nowhere'}: no such model directory"


def test_empty_directory(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert str(error) == f"{tmp_path / 'config.json'}: cannot be read (No such file or directory)"


def test_no_weights(single: Path) -> None:
    (single / SINGLE).unlink()
    error = refusal(single)
    assert (error.what, error.where, error.expected) == ("holds no weights", str(single), f"{SINGLE} or {INDEX}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth"])
def test_pickles(single: Path, name: str) -> None:
    (single / SINGLE).rename(single / name)
    error = refusal(single)
    assert error.what == "holds pickled weights, which can run code when they are read"
    assert error.hint == "--allow-pickle reads them as tensors and nothing else"


def test_pickles_beside_safetensors_are_left_alone(single: Path) -> None:
    (single / "pytorch_model.bin").write_bytes(b"\x80")
    assert list(open_checkpoint(single).headers) == [SINGLE]


def test_single_file_and_shards(sharded: Path, tiny: Path) -> None:
    shutil.copy(tiny / SINGLE, sharded)
    error = refusal(sharded)
    assert error.what == f"both {SINGLE} and {INDEX} are there, and readers differ in which they load"
    assert (error.where, error.hint) == (str(sharded), "remove the one that is stale")


def test_missing_shards(sharded: Path) -> None:
    names = shards(sharded)
    for name in (names[0], names[2]):
        (sharded / name).unlink()
    error = refusal(sharded)
    assert str(error) == (
        f"{sharded}: shards are missing; found {len(names) - 2} of {len(names)}, expected {names[0]}, {names[2]}; "
        "the download is incomplete"
    )


def test_a_shard_that_is_a_dangling_link(sharded: Path) -> None:
    name = shards(sharded)[0]
    (sharded / name).unlink()
    (sharded / name).symlink_to("nowhere")
    assert refusal(sharded).expected == name


def test_a_shard_that_is_a_directory(single: Path) -> None:
    (single / SINGLE).unlink()
    (single / SINGLE).mkdir()
    assert refusal(single).what == "is not a regular file, or a link to none"


# -- the index --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors", "/etc/model.safetensors", "deeper/model.safetensors", "..\\model.safetensors",
        "C:model.safetensors", "C:\\model.safetensors", "\\\\server\\share\\model.safetensors", "..", ".", "",
        "model\n.safetensors", "model\x00.safetensors", "model.bin", "config.json", None, 3, ["model.safetensors"],
    ],
    ids=ascii,
)  # fmt: skip
def test_the_index_names_plain_files_only(sharded: Path, name: Any) -> None:
    places = weight_map(sharded)
    tensor = next(iter(places))
    edit_json(sharded / INDEX, weight_map={**places, tensor: name})
    error = refusal(sharded)
    assert (error.what, error.where, error.found) == (
        f"unsafe file name for tensor {tensor!r}", str(sharded / INDEX), ascii(name),
    )  # fmt: skip
    assert error.expected == "a .safetensors file name without directories"


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "größe.safetensors", "a b.safetensors"])
def test_plain_names(name: str) -> None:
    assert is_plain_name(name)


def test_unsafe_tensor_name_in_the_index(sharded: Path) -> None:
    edit_json(sharded / INDEX, weight_map={**weight_map(sharded), "../x": shards(sharded)[0]})
    error = refusal(sharded)
    assert (error.what, error.where, error.found) == ("unsafe tensor name", str(sharded / INDEX), "'../x'")


@pytest.mark.parametrize("value", [None, {}, [], "model.safetensors"], ids=str)
def test_no_weight_map(sharded: Path, value: Any) -> None:
    edit_json(sharded / INDEX, weight_map=value)
    assert str(refusal(sharded)) == f"{sharded / INDEX}: has no weight_map"


def test_the_index_names_a_tensor_that_the_shard_lacks(sharded: Path) -> None:
    first = shards(sharded)[0]
    edit_json(sharded / INDEX, weight_map={**weight_map(sharded), "model.extra.weight": first})
    error = refusal(sharded)
    assert (error.what, error.found, error.expected) == (
        "the index names tensors that the shard lacks", first, "model.extra.weight",
    )  # fmt: skip


def test_the_index_is_silent_about_a_tensor(sharded: Path) -> None:
    places = weight_map(sharded)
    shard = places.pop("model.norm.weight")
    edit_json(sharded / INDEX, weight_map=places)
    assert shard in places.values(), "the shard should hold more than the norm"
    error = refusal(sharded)
    assert (error.what, error.found) == (
        "a shard holds tensors that the index does not place there", f"model.norm.weight in {shard}",
    )  # fmt: skip


def test_many_disagreements_are_counted(sharded: Path) -> None:
    first = shards(sharded)[0]
    extra = {f"x.{n}": first for n in range(6)}
    edit_json(sharded / INDEX, weight_map={**weight_map(sharded), **extra})
    assert refusal(sharded).expected == "x.0, x.1, x.2, x.3 and 2 more"


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    entries = {
        "model.norm.weight": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "own": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
    }
    raw_safetensors(sharded / "model-extra.safetensors", entries, bytes(2))
    places = {**weight_map(sharded), "own": "model-extra.safetensors"}
    edit_json(sharded / INDEX, weight_map=places)
    error = refusal(sharded)
    assert error.what == "tensor 'model.norm.weight' is in two shards"
    home = places["model.norm.weight"]
    assert error.found == " and ".join(sorted([home, "model-extra.safetensors"]))


def test_the_index_is_read_strictly(sharded: Path) -> None:
    name, shard = next(iter(weight_map(sharded).items()))
    (sharded / INDEX).write_text(f'{{"weight_map": {{"{name}": "{shard}", "{name}": "{shard}"}}}}')
    assert refusal(sharded).what == f"not valid JSON (duplicate key {name!r})"


def test_a_broken_shard_is_named(sharded: Path) -> None:
    shard = sharded / shards(sharded)[1]
    shard.write_bytes(shard.read_bytes()[:-3])
    error = refusal(sharded)
    assert (error.what, error.where) == ("truncated", str(shard))


# -- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "llama", "model_type": "mistral"}', "not valid JSON (duplicate key 'model_type')"),
        ('{"rms_norm_eps": NaN}', "not valid JSON (NaN is not a JSON number)"),
        ('{"rope_theta": 1e999}', "not valid JSON (1e999 is out of range)"),
        ("[1, 2]", "wrong JSON document; found list, expected an object"),
        ('"llama"', "wrong JSON document; found str, expected an object"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "not valid JSON (nested too deeply)"),
    ],
    ids=["duplicate", "NaN", "infinity", "list", "string", "nesting"],
)
def test_config_is_read_strictly(single: Path, text: str, message: str) -> None:
    (single / "config.json").write_text(text)
    assert str(refusal(single)) == f"{single / 'config.json'}: {message}"


def test_config_is_cut(single: Path) -> None:
    path = single / "config.json"
    path.write_bytes(path.read_bytes()[:-10])
    assert refusal(single).what.startswith("not valid JSON (")


def test_config_is_absurdly_large(single: Path) -> None:
    with (single / "config.json").open("rb+") as file:
        file.truncate(100_000_001)
    error = refusal(single)
    assert (error.what, error.found) == ("JSON file too large", "100000001 bytes")


# -- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
@pytest.mark.parametrize("absolute", [False, True])
def test_links_out_are_refused(single: Path, tmp_path: Path, name: str, absolute: bool) -> None:
    outside = tmp_path / "outside"
    (single / name).rename(outside)
    (single / name).symlink_to(outside if absolute else "../outside")
    error = refusal(single)
    assert (error.what, error.where, error.found) == (
        "is a symbolic link out of the checkpoint", str(single / name), outside,
    )  # fmt: skip


def test_a_link_to_the_index_out_is_refused(sharded: Path, tmp_path: Path) -> None:
    (sharded / INDEX).rename(tmp_path / INDEX)
    (sharded / INDEX).symlink_to(tmp_path / INDEX)
    assert refusal(sharded).what == "is a symbolic link out of the checkpoint"


def test_a_chain_of_links_out_is_refused(single: Path, tmp_path: Path) -> None:
    (single / SINGLE).rename(tmp_path / "weights")
    (single / "between").symlink_to("../weights")
    (single / SINGLE).symlink_to("between")
    assert refusal(single).what == "is a symbolic link out of the checkpoint"


def test_links_inside_are_fine(single: Path) -> None:
    (single / SINGLE).rename(single / "weights")
    (single / SINGLE).symlink_to("weights")
    assert list(open_checkpoint(single).headers) == [SINGLE]


def test_the_directory_itself_may_be_a_link(single: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(single)
    assert list(open_checkpoint(tmp_path / "link").headers) == [SINGLE]


def test_side_files_may_not_lead_out(single: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (single / "tokenizer.json").symlink_to("../secret")
    with pytest.raises(CheckpointError) as caught:
        present_files(single, ("tokenizer.json",))
    assert caught.value.what == "is a symbolic link out of the checkpoint"


@pytest.fixture
def hub_cache(tmp_path: Path, sharded: Path) -> Path:
    """A snapshot as huggingface_hub lays it out: names are links to blobs, which are called by their hash."""
    entry = tmp_path / "hub" / "models--org--name"
    snapshot, blobs = entry / "snapshots" / ("0123456789abcdef" * 2 + "01234567"), entry / "blobs"
    for directory in (snapshot, blobs, entry / "refs"):
        directory.mkdir(parents=True)
    (entry / "refs" / "main").write_text(snapshot.name)
    for path in sharded.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blobs / digest)
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    return snapshot


def test_the_hub_cache(hub_cache: Path) -> None:
    checkpoint = open_checkpoint(hub_cache)
    assert len(checkpoint.headers) > 2
    assert len(checkpoint.tensors) == 21
    assert all(spec.path.parent == hub_cache for spec in checkpoint.tensors.values())


def test_the_hub_cache_through_a_link(hub_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(hub_cache)
    assert len(open_checkpoint(tmp_path / "model").tensors) == 21


@pytest.mark.parametrize(
    "target",
    ["../../refs/main", "../../../models--other--name/blobs/abc", "../../../../secret"],
)
def test_links_of_the_hub_cache_lead_to_its_own_blobs_only(hub_cache: Path, target: str) -> None:
    path = hub_cache / "config.json"
    data = path.read_bytes()
    path.unlink()
    (hub_cache / target).parent.mkdir(parents=True, exist_ok=True)
    (hub_cache / target).write_bytes(data)
    path.symlink_to(target)
    assert refusal(hub_cache).what == "is a symbolic link out of the checkpoint"


def test_blobs_beside_a_directory_that_is_no_snapshot(hub_cache: Path) -> None:
    elsewhere = hub_cache.parent.rename(hub_cache.parent.with_name("copies")) / hub_cache.name
    assert (elsewhere / "config.json").exists(), "the links should still lead to the blobs"
    assert refusal(elsewhere).what == "is a symbolic link out of the checkpoint"
