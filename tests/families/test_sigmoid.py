"""Mixtures with sigmoid routers: what stock classes write is what we write; what they stop at is refused; training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.adapt.test_adapters import logits
from tests.conftest import run_convert
from tests.families.models import MODELS
from tests.merging import run_merge
from tests.training import lines, run_train
from upcycle.adapters.load import attached
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import UnsupportedError
from upcycle.families.match import match
from upcycle.moe.routing import find_routers, scoring_of_router
from upcycle.pipeline import stages
from upcycle.requests import Attach

ONE_OF_EACH = ("llama_glm4_layers", "qwen3_glm4", "llama_solar", "qwen3_dots1", "qwen3_hy_layers", "youtu_untied")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_tensors_and_config_are_what_the_stock_class_saves(
    made: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    out = run_convert(made(name), tmp_path / "moe", **MODELS[name].options)
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(tmp_path / "saved")
    ours, theirs = (load_file(place / "model.safetensors") for place in (out, tmp_path / "saved"))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    written, saved = (json.loads((place / "config.json").read_bytes()) for place in (out, tmp_path / "saved"))
    assert {key: written[key] for key in saved if key != "transformers_version"} == {
        key: value for key, value in saved.items() if key != "transformers_version"
    }


def test_the_shared_expert_of_hunyuan_is_the_dense_ffn_silenced(made: Callable[[str], Path], tmp_path: Path) -> None:
    dense, out = made("qwen3_hy"), run_convert(made("qwen3_hy"), tmp_path / "moe", target="hy_v3")
    ours, theirs = load_file(out / "model.safetensors"), load_file(dense / "model.safetensors")
    layer = "model.layers.1.mlp."
    for part in ("gate", "up"):
        assert torch.equal(ours[f"{layer}shared_mlp.{part}_proj.weight"], theirs[f"{layer}{part}_proj.weight"])
    assert not ours[f"{layer}shared_mlp.down_proj.weight"].any()


@pytest.mark.parametrize("target", ["glm4_moe", "solar_open"])
def test_one_expert_is_refused_where_the_class_takes_two(
    made: Callable[[str], Path], tmp_path: Path, target: str
) -> None:
    with pytest.raises(UnsupportedError, match="so few experts; found 1, expected 2 or more; --experts 2"):
        run_convert(made("llama_solar"), tmp_path / "moe", target=target, experts=1, top_k=1, allow_dead_router=True)


def test_the_cache_of_latent_attention_is_as_wide_as_its_vector(made: Callable[[str], Path]) -> None:
    assert match(open_checkpoint(made("youtu"))).cache_width == 2 * (20 + 6)  # layers; kv_lora_rank, qk_rope_head_dim


def test_adapter_experts_of_latent_attention_start_as_the_model_and_stay_adapters(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    base, new = made("youtu"), tmp_path / "new"
    stages.attach(Attach(model=str(base), out=str(new), experts=(3,), rank=4, attention_rank=2))
    dense = AutoModelForCausalLM.from_pretrained(base).eval()
    expected = logits(dense)
    assert torch.equal(logits(attached(dense, new).eval()), expected)
    with pytest.raises(UnsupportedError, match="score by softmax, those of deepseek_v3 by sigmoid"):
        run_merge(new, base, tmp_path / "out")


def test_training_balances_sigmoid_routers_and_leaves_the_selection_bias(text: Path, tmp_path: Path) -> None:
    moe = run_convert(
        Path("demo:tiny"), tmp_path / "moe", target="glm4_moe", router_std=0.1, noise=0.1, layers="last:2"
    )
    out = run_train(moe, tmp_path / "out", text, max_steps=3, balance_coef=0.05)
    assert all(0.9 < line["balance_loss"] < 2 and len(line["layers"]) == 2 for line in lines(out))
    routers = [router.module for router in find_routers(AutoModelForCausalLM.from_pretrained(out))]
    assert [scoring_of_router(router) for router in routers] == ["sigmoid"] * 2
    before = load_file(moe / "model.safetensors")
    after = load_file(out / "model.safetensors")
    moved = {key for key in before if not torch.equal(before[key].float(), after[key].float())}
    assert {key for key in before if ".mlp.gate." in key} - moved == {
        f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (2, 3)
    }
