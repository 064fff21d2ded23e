"""What is a Gemma 4 and cannot become its mixture, what can all the same, and how near the mixture comes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

from tests.conftest import edit_json, run_convert
from tests.drawn_adapters import draw_adapter
from tests.families.models import MODELS, save_model
from upcycle.build.adapter_experts import open_experts
from upcycle.build.conversion import conversion_warnings, plan_conversion
from upcycle.build.merge import plan_merge
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import UnsupportedError
from upcycle.families.base import adapter_base
from upcycle.families.match import match
from upcycle.pipeline.stages import verify
from upcycle.requests import Conversion, Merge, Verify

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a mixture": ({"enable_moe_block": True, "num_experts": 4}, "a mixture of experts already; found num_experts = 4"),
    "short list": ({"layer_types": ["full_attention"]}, "expected full_attention or sliding"),
    "strange layer": (
        {"layer_types": ["linear_attention"] + ["full_attention"] * 3},
        "expected full_attention or sliding",
    ),
    "other widths": ({"per_layer_config": {"1": {"intermediate_size": 8}}}, "expected a head size for some layers"),
    "no such width": ({"hidden_size_per_layer_input": -1}, "hidden_size_per_layer_input = -1: expected a count"),
}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("gemma4_small", MODELS["gemma4_small"], tmp_path_factory.mktemp("gemma") / "dense")


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(gemma: Path, copy_of: Callable[[Path], Path], name: str) -> None:
    fields, why = REFUSED[name]
    directory = copy_of(gemma)
    edit_json(directory / "config.json", **fields)
    with pytest.raises(UnsupportedError, match=why):
        plan_conversion(open_checkpoint(directory), Conversion(model=str(directory)))


def test_experts_that_are_switched_off_are_none(gemma: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(gemma)
    edit_json(directory / "config.json", num_experts=16, top_k_experts=4, moe_intermediate_size=7)
    config = plan_conversion(open_checkpoint(directory), Conversion(model=str(directory), experts=3, top_k=2)).config
    assert [config[name] for name in ("num_experts", "top_k_experts", "enable_moe_block")] == [3, 2, True]


def test_all_experts_are_as_wide_as_the_widest(gemma: Path) -> None:
    """Layers 2 and 3 share keys, so their FFNs are twice 48 wide; in the others zeros follow the FFN's neurons."""
    plan = plan_conversion(open_checkpoint(gemma), Conversion(model=str(gemma), experts=3, top_k=2))
    shapes = {write.name: write.shape for write in plan.writes}
    assert plan.config["moe_intermediate_size"] == 96
    for layer, neurons in enumerate((48, 48, 96, 96)):
        assert shapes[f"model.layers.{layer}.mlp.gate_proj.weight"] == (neurons, 32)
        assert shapes[f"model.layers.{layer}.experts.gate_up_proj"] == (3, 192, 32)
    # 2 layers with keys and values of their own: 2 heads of 8 in the first, of 12 in the second
    assert plan.cache_width == 2 * 2 * 8 + 2 * 2 * 12


def test_values_that_are_the_keys_are_cached_too(tmp_path: Path) -> None:
    dense = save_model("gemma4_large", MODELS["gemma4_large"], tmp_path / "dense")
    plan = plan_conversion(open_checkpoint(dense), Conversion(model=str(dense)))
    assert plan.cache_width == 2 * (2 * 2 * 8 + 2 * 1 * 12)  # where attention is full: one head of 12


def test_its_mixture_is_known_as_one(gemma: Path, tmp_path: Path) -> None:
    run_convert(gemma, tmp_path / "moe")
    with pytest.raises(UnsupportedError, match="a mixture of experts already; found num_experts = 4, gemma4_text"):
        run_convert(tmp_path / "moe", tmp_path / "again")


@pytest.mark.parametrize("rms", [0.03, 0.3])
def test_what_the_second_norm_adds(rms: float) -> None:
    """The formula of `families.targets.gemma4_text`, in the stock norm."""
    eps, hidden_BD = 1e-5, torch.randn(4, 64, dtype=torch.float64)
    hidden_BD *= rms / hidden_BD.pow(2).mean(-1, keepdim=True).sqrt()
    norm = Gemma4RMSNorm(64, eps, with_scale=False)
    # in float64: the stock norm rounds to float32
    ratio = norm._norm(2 * norm._norm(hidden_BD)) / norm._norm(hidden_BD)
    assert (ratio - 1).flatten().tolist() == pytest.approx([eps / (2 * rms**2) - eps / 8] * 256, rel=2e-2)


def test_a_large_eps_is_warned_of_and_measured(tmp_path: Path) -> None:
    model = MODELS["gemma4_small"]
    model = replace(model, fields={**model.fields, "rms_norm_eps": 2e-3})
    dense = save_model("gemma4_small", model, tmp_path / "dense")
    request = Conversion(model=str(dense))
    checkpoint = open_checkpoint(dense)
    (warning,) = conversion_warnings(checkpoint, plan_conversion(checkpoint, request), request)
    assert "but for the norms' eps (0.002), and exact where the FFN's outputs have a root mean square of 10" in warning
    run_convert(dense, tmp_path / "moe")
    report = verify(Verify(dense=str(dense), moe=str(tmp_path / "moe")))
    assert [line.name for line in report.lines if line.verdict == "FAIL"] == ["logits", "layers"]
    assert 1e-5 < report.figures["parity"]["relative"] < 0.1


def test_experts_of_an_adapter_do_not_merge_into_it(gemma: Path, tmp_path: Path) -> None:
    """Its experts would be added to the FFN after a norm of their own; an adapter's stand in the FFN's place."""
    qwen = save_model("qwen3", MODELS["qwen3"], tmp_path / "qwen3")
    directory = draw_adapter(qwen, tmp_path / "adapter", "lora")
    adapter, base = open_experts(directory, adapter_base(open_checkpoint(qwen))), open_checkpoint(gemma)
    request = Merge(adapter=str(directory), base=str(gemma), out=str(tmp_path / "out"))
    with pytest.raises(UnsupportedError, match="it normalises the FFN's output and the experts' by themselves"):
        plan_merge(base, match(base), adapter, request)
