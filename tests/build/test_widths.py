"""Widths that torch's grouped_mm cannot run are told before anything is written, and an FFN can be padded exactly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.conftest import edit_json, run_convert
from tests.convert.test_convert import assert_same_logits, load, tensors
from tests.drawn_adapters import draw_adapter
from tests.merging import run_merge
from tests.models import SMALL, draw_weights
from tests.training import losses, run_train
from upcycle.errors import UnsupportedError
from upcycle.pipeline.locate import BUILT_IN
from upcycle.pipeline.stages import generate, plan, verify
from upcycle.requests import Generate, Plan, Verify


def save(directory: Path, **fields: int) -> Path:
    torch.manual_seed(0)
    model = draw_weights(LlamaForCausalLM(LlamaConfig(**{**SMALL, **fields})))
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FFN of 60 neurons: a row of 120 bytes in bfloat16, where grouped_mm wants a multiple of 16."""
    return save(tmp_path_factory.mktemp("odd") / "odd", intermediate_size=60)


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hidden size of 52: rows of 104 bytes."""
    return save(tmp_path_factory.mktemp("slim") / "slim", hidden_size=52, head_dim=8)


def warnings_of(model: Path, **fields: object) -> tuple[str, ...]:
    return plan(Plan(model=str(model), experts=4, **fields)).warnings  # type: ignore[arg-type]


def test_plan_says_so(odd: Path, slim: Path, tiny: Path) -> None:
    (told,) = warnings_of(odd)
    assert told.startswith("FFN width 60 in BF16: no multiple of 8")
    assert told.endswith("; --pad-width adds zero neurons up to 64")
    (told,) = warnings_of(slim)
    assert told.startswith("hidden size 52 in BF16: no multiple of 8")
    assert 'experts_implementation="eager"' in told
    assert "--pad-width" not in told
    assert warnings_of(tiny) == ()
    assert warnings_of(odd, dtype="f32") == ()  # 240 bytes
    assert warnings_of(odd, pad_width=True) == ()


def test_the_dtype_that_transformers_loads_counts(odd: Path, tmp_path: Path) -> None:
    """Float32 on disk, 240 bytes a row; config.json says bfloat16, in which transformers loads it: 120 bytes."""
    wide = tmp_path / "wide"
    AutoModelForCausalLM.from_pretrained(odd, dtype=torch.float32).save_pretrained(wide)
    assert warnings_of(wide) == ()
    edit_json(wide / "config.json", dtype="bfloat16")
    (told,) = warnings_of(wide)
    assert told.startswith("FFN width 60 in BF16")
    out = run_convert(wide, tmp_path / "out", pad_width=True)
    assert json.loads((out / "config.json").read_bytes())["intermediate_size"] == 64
    assert AutoModelForCausalLM.from_pretrained(out)(torch.arange(8)[None]).logits.isfinite().all()
    adapter = draw_adapter(wide, tmp_path / "adapter", "lora")
    with pytest.raises(UnsupportedError, match="found 60 wide"):
        run_merge(adapter, wide, tmp_path / "merged")


@pytest.mark.usefixtures("no_second_process")
def test_padded_experts_compute_the_same_and_run_by_default(odd: Path, tmp_path: Path) -> None:
    out = run_convert(odd, tmp_path / "out", pad_width=True)
    assert_same_logits(load(out), load(odd), torch.arange(40)[None] * 7 % 96)
    made, dense = tensors(out), tensors(odd)
    for layer in range(2):
        for expert in range(4):
            for name, source in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
                padded = made[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"]
                whole = dense[f"model.layers.{layer}.mlp.{source}_proj.weight"]
                kept, blank = padded.split((60, 4), dim=int(name == "w2"))
                assert torch.equal(kept, whole)
                assert not blank.any()
    stock = AutoModelForCausalLM.from_pretrained(out)  # bfloat16, grouped_mm
    assert stock(torch.arange(40)[None]).logits.isfinite().all()
    receipt = json.loads((out / "upcycle.json").read_bytes())
    assert (receipt["recipe"]["pad_width"], receipt["exact"]) == (True, True)
    assert json.loads((out / "config.json").read_bytes())["intermediate_size"] == 64
    assert verify(Verify(dense=str(odd), moe=str(out))).passed


def test_noise_may_be_padded_too(odd: Path, tmp_path: Path) -> None:
    made = tensors(run_convert(odd, tmp_path / "out", pad_width=True, noise=0.1))
    plain = tensors(run_convert(odd, tmp_path / "plain", noise=0.1))
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    assert torch.equal(made[name][:, :60], plain[name])
    assert not made[name][:, 60:].any()


def test_a_width_that_fits_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    one, other = run_convert(tiny, tmp_path / "one"), run_convert(tiny, tmp_path / "other", pad_width=True)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_merge_refuses_a_hidden_size_before_it_writes(slim: Path, tmp_path: Path, kind: str) -> None:
    adapter = draw_adapter(slim, tmp_path / "adapter", kind)
    with pytest.raises(UnsupportedError, match=r"no stock model runs such a merge .*hidden size 52 in BF16"):
        run_merge(adapter, slim, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_larger_than_the_embedding(copy_of: Callable[[Path], Path]) -> None:
    model = copy_of(BUILT_IN["demo:tiny"])
    assert warnings_of(model) == ()
    tokenizer = json.loads((model / "tokenizer.json").read_bytes())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 2050, "content": "<more>"})
    edit_json(model / "tokenizer.json", added_tokens=tokenizer["added_tokens"])
    (told,) = warnings_of(model)
    assert told.startswith("the tokenizer has 2,051 tokens and the embedding 2,048 rows")


def test_our_own_commands_run_what_grouped_mm_cannot(tmp_path: Path, text: Path) -> None:
    """At 350 neurons a row has 700 bytes: transformers' default stops, generate and train choose eager themselves."""
    dense = tmp_path / "dense"
    shutil.copytree(BUILT_IN["demo:tiny"], dense)
    edit_json(dense / "config.json", intermediate_size=350)
    weights = load_file(dense / "model.safetensors")
    for name in [name for name in weights if ".mlp." in name]:
        axis = int("down_proj" in name)
        weights[name] = weights[name].narrow(axis, 0, 350).contiguous()
    save_file(weights, dense / "model.safetensors")
    out = run_convert(dense, tmp_path / "moe")
    with pytest.raises(RuntimeError, match="strides should be multiple of 16 bytes"):
        AutoModelForCausalLM.from_pretrained(out)(torch.arange(8)[None])
    assert generate(Generate(model=str(out), prompt="In the beginning", max_new_tokens=4))
    assert len(losses(run_train(out, tmp_path / "trained", text, dtype="bf16", max_steps=2))) == 2
