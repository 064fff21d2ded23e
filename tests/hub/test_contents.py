"""What of a directory is published, and what is refused before the Hub is asked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import edit_json, run_convert
from upcycle.errors import CheckpointError, InputError
from upcycle.hub.contents import Contents, read_contents
from upcycle.hub.stale import beside, is_of_a_model
from upcycle.moe.fit import check_fit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A mixture of four experts in three files."""
    return run_convert(tiny, tmp_path_factory.mktemp("made") / "moe", max_shard_size="40KB")


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "moe"))


@pytest.fixture
def single(made: Path, tmp_path: Path) -> Path:
    """The same in one file, without a receipt."""
    out = tmp_path / "single"
    out.mkdir()
    (out / "config.json").write_bytes((made / "config.json").read_bytes())
    save_file(tensors(made), out / "model.safetensors")
    return out


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in directory.glob("*.safetensors") for name, value in load_file(path).items()}


def shard(model: Path) -> Path:
    return min(model.glob("model-*.safetensors"))


def checked(directory: Path) -> Contents:
    contents = read_contents(directory)
    check_fit(directory, contents.shapes)
    return contents


def names(contents: Contents) -> list[str]:
    return [item.name for item in contents.items]


# -- what is taken ----------------------------------------------------------------------------------------------------


def test_a_conversion_is_taken_whole(made: Path) -> None:
    contents = checked(made)
    assert (contents.kind, contents.left) == ("model", ())
    assert names(contents) == sorted(path.name for path in made.iterdir())
    assert {name: shape for name, (_, shape) in contents.shapes.items()} == {
        name: tuple(value.shape) for name, value in tensors(made).items()
    }


def test_what_is_of_work_stays_here(model: Path) -> None:
    taken = ["LICENSE", "NOTICE.txt", "README.md", "USE_POLICY.md", "curve.png", "model.q8.gguf", "plots/losses.svg"]
    stays = [
        ".env", ".git/config", "checkpoint-10/model.safetensors", "events.out.tfevents.1", "notes.txt", "optimizer.pt",
        "pytorch_model.bin", "runs/1/x.png", "stray.safetensors", "train.py", "training.json",
    ]  # fmt: skip
    for name in (*taken, *stays):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("x")
    before = set(names(read_contents(model)))
    contents = read_contents(model)
    assert set(taken) <= before
    assert not before & set(stays)
    assert list(contents.left) == [
        ".env", ".git/", "checkpoint-10/", "events.out.tfevents.1", "notes.txt", "optimizer.pt", "pytorch_model.bin",
        "runs/", "stray.safetensors", "train.py", "training.json",
    ]  # fmt: skip
    more = read_contents(model, ("*.txt", "runs/**"))
    assert set(names(more)) - before == {"notes.txt", "runs/1/x.png"}
    assert ".env" in read_contents(model, ("*",)).left
    with pytest.raises(InputError, match=r"--include matches no file; found \*\.log"):
        read_contents(model, ("*.txt", "*.log"))


@pytest.mark.parametrize("name", ["config.json", "README.md", "tokenizer.json", "notes.txt"])
def test_a_link_that_leads_out_is_not_followed(model: Path, tmp_path: Path, name: str) -> None:
    (model / "upcycle.json").unlink()
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    with pytest.raises(InputError, match=r"leads out of|symbolic link|outside"):
        read_contents(model, ("notes.txt",) if name == "notes.txt" else ())


def test_links_inside_of_folders_are_not_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/secret.png").write_text("x")
    (model / "plots").mkdir()
    (model / "plots/secret.png").symlink_to(tmp_path / "secret.png")
    (model / "other").symlink_to(tmp_path / "folder")
    assert "secret" not in "".join(names(read_contents(model, ("*.json", "config*"))))


def test_files_that_would_be_read_as_parts_of_a_model() -> None:
    of_it = [
        "model.safetensors", "model-00001-of-00002.safetensors", "model.fp16.safetensors", "pytorch_model.bin",
        "chat_template.jinja", "adapter_model.safetensors", "adapter_model.bin", "model.safetensors.index.json",
        "pytorch_model.bin.index.json", "tokenizer.json", "tokenizer.model.v7", "upcycle.json",
        "consolidated.safetensors", "consolidated.00.pth", "params.json", "tf_model.h5", "flax_model.msgpack",
        "processor_config.json", "preprocessor_config.json", "additional_chat_templates/tool_use.jinja",
        "plots/losses.png", "plots/load-over-steps-2.svg",
    ]  # fmt: skip
    others = ["model.gguf", "onnx/model.safetensors", "original/params.json", "model-4bit/model.safetensors", "x.pt"]
    not_of_it = ["README.md", "LICENSE", "notes.txt", "plots/mine.png", "a/tokenizer.json"]
    assert [name for name in (*of_it, *others, *not_of_it) if is_of_a_model(name)] == of_it
    assert list(beside((*of_it, *others, *not_of_it), {"model.safetensors"})) == others
    assert list(beside(others, {"x.pt"})) == others[:-1]


# -- what is refused --------------------------------------------------------------------------------------------------


def swap(path: Path) -> None:
    """Change one number of a shard, and nothing of its header."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lie(model: Path) -> None:
    """Let the index name another file for a tensor."""
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_bytes())
    first, *_, last = index["weight_map"]
    index["weight_map"][first] = index["weight_map"][last]
    path.write_text(json.dumps(index))


def without_receipt(model: Path) -> Path:
    (model / "upcycle.json").unlink()
    return model


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is missing": (lambda model: shutil.move(shard(model), model.parent), "shards are missing; found 2 of 3"),
    "a shard is cut off": (lambda model: shard(model).write_bytes(shard(model).read_bytes()[:-1]), "model-00001"),
    "the index lies": (lie, "model-0000"),
    "no index": (
        lambda model: shutil.move(model / "model.safetensors.index.json", model.parent),
        "expected model.safetensors",
    ),
    "no config": (lambda model: shutil.move(model / "config.json", model.parent), "config.json"),
    "an edited config": (lambda model: edit_json(model / "config.json", rope_theta=1.0), "config.json is not what the"),
    "no JSON": (lambda model: (model / "config.json").write_text("{"), "not valid JSON"),
    "another receipt": (lambda model: edit_json(model / "upcycle.json", files={"x": "1"}), "x is not what the receipt"),
    "a receipt of nothing": (lambda model: edit_json(model / "upcycle.json", files=...), "damaged receipt"),
    "a receipt that is a list": (lambda model: (model / "upcycle.json").write_text("[]"), "upcycle.json"),
    "still being written": (lambda model: (model / "state.jsonl").write_text(""), "unfinished, or still being written"),
    "code": (
        lambda model: edit_json(without_receipt(model) / "config.json", auto_map={"a": "b"}),
        "needs code of its own",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_damaged(model: Path, case: str) -> None:
    damage, words = DAMAGE[case]
    damage(model)
    with pytest.raises(InputError) as error:
        read_contents(model)
    assert words in str(error.value)
    assert str(model) in str(error.value)


def test_unfinished_work(tmp_path: Path, model: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model directory"):
        read_contents(tmp_path / "none")
    with pytest.raises(InputError):
        read_contents(tmp_path)
    training = tmp_path / "training"
    training.mkdir()
    (training / "training.json").write_text("{}")
    shutil.copytree(model, training / "checkpoint-10")
    with pytest.raises(InputError, match="is an unfinished training; finish it with `upcycle train --resume`"):
        read_contents(training)


EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"


def test_what_transformers_would_load(single: Path) -> None:
    contents = checked(single)
    assert EXPERT in contents.shapes
    assert names(contents) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({EXPERT: torch.zeros(32, 47, dtype=torch.bfloat16)}, "cannot put the tensors together"),
        ({EXPERT: None}, "tensors"),
        ({"model.norm.weight": None}, "1 tensors missing, by MixtralForCausalLM of transformers; found model.norm"),
        ({"model.norm.weight": torch.zeros(31, dtype=torch.bfloat16)}, "1 tensors of another shape"),
        ({"extra.weight": torch.zeros(3)}, "1 tensors that it does not know"),
        ({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}, "is of a data type that is not published; found I8"),
    ],
)
def test_tensors_that_do_not_fit(single: Path, changes: dict[str, torch.Tensor | None], words: str) -> None:
    changed = {**tensors(single), **changes}
    kept = {name: value for name, value in changed.items() if value is not None}
    save_file(kept, single / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        checked(single)
    assert words in str(error.value)
    assert str(single) in str(error.value)


@pytest.mark.parametrize("count", [3, 5])
def test_a_config_of_another_number_of_experts(single: Path, count: int) -> None:
    edit_json(single / "config.json", num_local_experts=count, num_experts=count)
    with pytest.raises(CheckpointError):
        checked(single)


@pytest.mark.parametrize("kind", ["no_such_model", "vit"])
def test_a_config_that_is_of_no_language_model(single: Path, kind: str) -> None:
    edit_json(single / "config.json", model_type=kind, architectures=...)
    with pytest.raises(InputError, match="transformers knows no causal language model of this config"):
        checked(single)
