"""Shared experts of classes that cannot do without one: they start as ones that add nothing."""

from pathlib import Path

import torch

from tests.conftest import run_convert
from tests.convert.test_convert import raw, tensors
from tests.drawn_adapters import draw_adapter, formula_model
from tests.families.models import MODELS, save_model
from tests.merging import logits_error, run_merge


def test_hunyuans_can_learn(tmp_path: Path) -> None:
    """As wide as the others, for the class has one width: with their gate and up projections, so gradients pass."""
    moe = tensors(run_convert(save_model("hunyuan", MODELS["hunyuan"], tmp_path / "dense"), tmp_path / "moe"))
    shared, first = (f"model.layers.1.mlp.{name}." for name in ("shared_mlp", "experts.0"))
    for name in ("gate_proj.weight", "up_proj.weight"):
        assert raw(moe[shared + name]) == raw(moe[first + name])
    assert moe[shared + "down_proj.weight"].shape == (32, 48)
    assert not moe[shared + "down_proj.weight"].any()


def test_hunyuans_is_as_wide_as_merged_experts(tmp_path: Path) -> None:
    base = save_model("hunyuan", MODELS["hunyuan"], tmp_path / "dense")
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck")
    run_merge(adapter, base, tmp_path / "out")
    assert logits_error(formula_model(base, adapter), tmp_path / "out") <= 1e-5


def test_that_of_qwen3_5_is_narrow(tmp_path: Path) -> None:
    out = run_convert(save_model("qwen3_5", MODELS["qwen3_5"], tmp_path / "dense"), tmp_path / "moe")
    shared = {name: value for name, value in tensors(out).items() if ".2.mlp.shared_expert" in name}
    assert {name.split("shared_expert")[1]: tuple(value.shape) for name, value in shared.items()} == {
        ".gate_proj.weight": (32, 32), ".up_proj.weight": (32, 32), ".down_proj.weight": (32, 32),
        "_gate.weight": (1, 32),
    }  # fmt: skip
    assert not torch.cat([value.flatten() for value in shared.values()]).any()
