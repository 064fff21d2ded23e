"""A bottleneck adapter as a mixture with a shared expert: the same function as the formulas, on every variant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import edit_json
from tests.drawn_adapters import draw_adapter, formula_model
from tests.merging import logits_error, run_merge
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import UnsupportedError
from upcycle.families.pairs import TARGETS as ALL_TARGETS
from upcycle.families.pairs import pairs_of

TARGETS = [pair.target.model_type for pair in pairs_of("llama", form="compact")]


def float32_copy(base: Path, directory: Path) -> Path:
    """The same model with float32 weights: nothing is rounded, so a merge must be exact."""
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(directory)
    return directory


def test_equals_the_adapter(variant: Path, tmp_path: Path) -> None:
    base = float32_copy(variant, tmp_path / "base")
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck", attention_rank=3)
    expected = formula_model(base, adapter)
    windowed = (open_checkpoint(base).config.get("sliding_window") or 64) < 64
    for target in TARGETS:
        if windowed:
            with pytest.raises(
                UnsupportedError,
                match=f"{target} cannot express: .* has no sliding window",
            ):
                run_merge(adapter, base, tmp_path / target, to="compact", target=target)
        else:
            run_merge(adapter, base, tmp_path / target, to="compact", target=target)
            assert logits_error(expected, tmp_path / target) <= 1e-5, target


@pytest.mark.parametrize("fields", [{"routing": "dense"}, {"top_k": 1}, {"num_experts": [3, 3], "top_k": 3}])
@pytest.mark.parametrize("target", TARGETS)
def test_every_routing_whose_weights_sum_to_one(
    dense: Callable[[str], Path], target: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    base = float32_copy(dense("llama"), tmp_path / "base")
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck", **fields)
    run_merge(adapter, base, tmp_path / "out", to="compact", target=target)
    assert logits_error(formula_model(base, adapter), tmp_path / "out") <= 1e-5


def test_a_window_as_long_as_the_model_is_none(dense: Callable[[str], Path], tmp_path: Path) -> None:
    base = float32_copy(dense("mistral_window"), tmp_path / "base")
    edit_json(base / "config.json", sliding_window=64)
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck")
    run_merge(adapter, base, tmp_path / "out", to="compact")
    assert "sliding_window" not in open_checkpoint(tmp_path / "out").config
    assert logits_error(formula_model(base, adapter), tmp_path / "out") <= 1e-5


@pytest.mark.parametrize("target", TARGETS)
def test_the_base_is_there_once(tiny: Path, target: str, tmp_path: Path) -> None:
    adapter = draw_adapter(tiny, tmp_path / "adapter", "bottleneck")
    merged = run_merge(adapter, tiny, tmp_path / "out", to="compact", target=target)
    shared = sum(part.parameters for part in merged.account.parts if part.role == "shared")
    small = sum(part.parameters for part in merged.account.parts if part.role == "experts")
    gate = 2 * 32 if target == "qwen2_moe" else 0  # layers x hidden
    assert shared == 2 * 3 * 32 * 48 + gate  # layers, matrices, hidden, intermediate
    assert small == 2 * 4 * 3 * 32 * 8  # layers, experts, matrices, hidden, width
    assert merged.account.disk < 1.3 * (merged.base_bytes + merged.adapter_bytes / 2)  # bfloat16, as the base
    assert merged.as_json()["adapter_bytes"] == (adapter / "adapter_model.safetensors").stat().st_size


def test_limits_in_other_readers_are_told(tiny: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(tiny, tmp_path / "adapter", "bottleneck")
    merged = run_merge(adapter, tiny, tmp_path / "out", to="compact", target="qwen2_moe")
    told = " ".join(merged.account.reader_limits)
    assert "norm_topk_prob" in told
    assert "NaN" in told


def test_limits_depend_on_the_model() -> None:
    def told(**config: Any) -> str:
        plain = {
            "head_dim": 8,
            "num_attention_heads": 4,
            "hidden_size": 32,
            "rope_parameters": {"rope_type": "default"},
            "hidden_act": "silu",
            "max_position_embeddings": 64,
        }
        return " ".join(ALL_TARGETS["granitemoeshared"].reader_limits({**plain, **config}))

    assert "head_dim" not in told()
    assert "head_dim" in told(head_dim=10)
    assert "llama3" in told(rope_parameters={"rope_type": "llama3"})
