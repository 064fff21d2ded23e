"""What an attacker and a newcomer found: each was wrong output, lost data or a hang once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import contents, edit_json, run_convert
from tests.models import save_dense
from upcycle.checkpoint.place import staging_path
from upcycle.checkpoint.staging import Staging
from upcycle.errors import CheckpointError, InputError, RequestError, StagingError, UnsupportedError
from upcycle.pipeline.stages import convert, plan, verify
from upcycle.requests import Convert, Generate, Plan, Verify

Copied = Callable[[Path], Path]


# -- wrong output -----------------------------------------------------------------------------------------------------


def test_an_index_beside_a_single_file_is_refused(tiny: Path, copy_of: Copied) -> None:
    """transformers would load model.safetensors alone, whatever the index says about a second file."""
    model = copy_of(tiny)
    tensors = load_file(model / "model.safetensors")
    second = {"lm_head.weight": tensors.pop("lm_head.weight")}
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    save_file(second, model / "more.safetensors", {"format": "pt"})
    weight_map = dict.fromkeys(tensors, "model.safetensors") | dict.fromkeys(second, "more.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="readers differ in which they load"):
        plan(Plan(model=str(model)))


@pytest.mark.parametrize("dtype", ["float32", "float16", None])
def test_the_dtype_that_the_dense_model_runs_in_is_kept(tiny: Path, copy_of: Copied, dtype: str | None) -> None:
    model = copy_of(tiny)  # its weights are bfloat16
    edit_json(model / "config.json", dtype=dtype)
    assert plan(Plan(model=str(model))).plan.config["dtype"] == (dtype or "bfloat16")
    assert plan(Plan(model=str(model), dtype="f32")).plan.config["dtype"] == "float32"


def test_float64_asks_for_another_dtype(tmp_path: Path) -> None:
    dense = save_dense("llama", tmp_path / "dense", dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="no mixtral runs in float64; --dtype f32 rounds the weights"):
        plan(Plan(model=str(dense)))
    assert not plan(Plan(model=str(dense), dtype="f32")).plan.exact


@pytest.mark.usefixtures("no_second_process")
def test_null_dropout_becomes_the_default(tiny: Path, copy_of: Copied, tmp_path: Path) -> None:
    model = copy_of(tiny)
    edit_json(model / "config.json", attention_dropout=None)
    moe = run_convert(model, tmp_path / "moe")
    assert json.loads((moe / "config.json").read_text())["attention_dropout"] == 0.0
    assert verify(Verify(dense=str(model), moe=str(moe))).passed


def test_a_model_that_changes_while_it_is_copied_is_refused(tiny: Path, copy_of: Copied, tmp_path: Path) -> None:
    model, out = copy_of(tiny), tmp_path / "moe"

    def replace_weights(_: object) -> Callable[[int], None]:
        os.utime(model / "model.safetensors", ns=(1, 1))
        return lambda _: None

    with pytest.raises(CheckpointError, match="the model changed while the output was written; start again"):
        convert(Convert(model=str(model), out=str(out)), replace_weights)
    assert not out.exists()
    assert not staging_path(out).exists()


def test_ignore_config_takes_no_typos_and_no_known_fields(tiny: Path) -> None:
    for name, reason in (("nosuch", "is not in config.json"), ("hidden_size", "is accounted for, and is not left out")):
        with pytest.raises(RequestError, match=f"--ignore-config {name}: the field {reason}"):
            plan(Plan(model=str(tiny), ignore_config=(name,)))


# -- lost data --------------------------------------------------------------------------------------------------------


def test_a_finished_output_called_partial_is_not_cleared_away(tiny: Path, tmp_path: Path) -> None:
    kept = run_convert(tiny, tmp_path / "x").rename(tmp_path / "x.partial")
    before = contents(kept)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match="is in the way and is no unfinished output"):
            run_convert(tiny, tmp_path / "x", **options)
    assert contents(kept) == before


def test_overwrite_leaves_directories_of_others_alone(tiny: Path, tmp_path: Path) -> None:
    out = run_convert(tiny, tmp_path / "moe")
    (out / "checkpoints").mkdir()
    with pytest.raises(InputError, match="OUT holds what upcycle did not make") as caught:
        run_convert(tiny, out, overwrite=True)
    assert caught.value.found == "checkpoints"


def test_a_mount_point_is_refused_before_the_work(tiny: Path) -> None:
    with pytest.raises(InputError, match="OUT is a mount point") as caught:
        convert(Convert(model=str(tiny), out="/proc", overwrite=True))
    assert caught.value.hint == "choose a directory inside it"


def test_resume_does_not_take_an_older_output_for_done(tiny: Path, copy_of: Copied, tmp_path: Path) -> None:
    """The plan of a fine-tune is the same, for its headers are; its weights are not."""
    model = copy_of(tiny)
    out = run_convert(model, tmp_path / "moe")
    tensors = load_file(model / "model.safetensors")
    save_file({name: value * 2 for name, value in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="OUT is not empty; --overwrite replaces it"):
        run_convert(model, out, resume=True)


@pytest.mark.usefixtures("no_second_process")
def test_home_is_found_in_out(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    convert(Convert(model=str(tiny), out="~/moe"))
    assert verify(Verify(dense=str(tiny), moe="~/moe")).passed


def test_nothing_is_said_to_be_kept_where_nothing_is(tiny: Path) -> None:
    with pytest.raises(StagingError) as caught:
        convert(Convert(model=str(tiny), out="/proc/foo"))
    assert "kept" not in str(caught.value)


# -- code, hangs, crashes ---------------------------------------------------------------------------------------------


def test_code_from_a_checkpoint_is_never_run(copy_of: Copied, tmp_path: Path) -> None:
    from upcycle.pipeline.locate import BUILT_IN

    model = copy_of(BUILT_IN["demo:tiny"])
    edit_json(model / "config.json", model_type="strange", auto_map={"AutoConfig": "evil.C"})
    (model / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    command = [sys.executable, "-m", "upcycle.cli", "generate", str(model), "hi"]
    done = subprocess.run(command, input="y\ny\ny\n", capture_output=True, text=True)
    assert done.returncode == 2, done
    assert not (tmp_path / "pwned").exists()


def test_a_pipe_in_place_of_a_file_does_not_hang(tiny: Path, copy_of: Copied) -> None:
    model = copy_of(tiny)
    os.mkfifo(model / "tokenizer.json")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        plan(Plan(model=str(model)))


def test_half_a_surrogate_pair_is_refused_before_a_byte_is_written(tiny: Path, copy_of: Copied) -> None:
    model = copy_of(tiny)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "prefix": "\ud800"}))
    with pytest.raises(CheckpointError, match="holds half of a surrogate pair"):
        plan(Plan(model=str(model)))


def test_thousands_of_experts_are_planned(tiny: Path) -> None:
    """2 layers of 3 matrices, 4,096 experts each: once quadratic; the number of paths has 1,200 digits."""
    account = plan(Plan(model=str(tiny), experts=4096, top_k=2048)).account
    assert sum(part.tensors for part in account.parts if part.role == "experts") == 2 * 3 * 4096
    assert account.as_json()["expert_paths"]["per_layer"] is None
    json.dumps(account.as_json())


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("state.jsonl", b"\0\0\n"), ("state.jsonl", b"[1]\n"),
        ("state-00001-of-00001.jsonl", b"\0\0\n"), ("state-00001-of-00001.jsonl", b'{"shard": 1}\n'),
    ],
)  # fmt: skip
def test_a_damaged_journal_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lines: bytes
) -> None:
    def full(_: Staging) -> None:
        raise StagingError("the disk is full")

    out = tmp_path / "moe"
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "commit", full)
        with pytest.raises(StagingError):
            run_convert(tiny, out)
    (staging_path(out) / name).write_bytes(lines)
    with pytest.raises(InputError, match="is damaged; --overwrite without --resume starts again") as caught:
        run_convert(tiny, out, resume=True)
    assert caught.value.where == str(staging_path(out) / name)
    run_convert(tiny, out, overwrite=True)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: Plan(model="m", max_shard_size="9" * 400 + "GB"),
        lambda: Generate(model="m", prompt="p", temperature=1e-40),
        lambda: Generate(model="m", prompt="p", seed=10**23),
    ],
)
def test_numbers_beyond_reason_are_refused(ask: Callable[[], object]) -> None:
    with pytest.raises(RequestError, match="is out of range"):
        ask()


def test_a_dry_run_makes_the_checks_of_a_run(tiny: Path, tmp_path: Path) -> None:
    out = run_convert(tiny, tmp_path / "moe")
    with pytest.raises(InputError, match="OUT is not empty"):
        run_convert(tiny, out, dry_run=True)
    with pytest.raises(InputError, match="OUT and MODEL overlap"):
        run_convert(tiny, tiny / "moe", dry_run=True)
