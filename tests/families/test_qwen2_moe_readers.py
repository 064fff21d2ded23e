"""Qwen2-MoE in llama.cpp and mlx-lm, which ignore `norm_topk_prob`: how far off they are, without them.

`make interop` measures that mlx-lm computes just what stock transformers does with the field set to false.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import run_convert
from tests.families.models import MODELS, save_model
from upcycle.pipeline.stages import plan
from upcycle.requests import Plan

IDS_BT = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return save_model("qwen2_qwen2_moe", MODELS["qwen2_qwen2_moe"], tmp_path / "dense")


def logits(directory: Path, **fields: Any) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **fields).eval()
    with torch.no_grad():
        return torch.as_tensor(model(IDS_BT).logits)


def halved(dense: Path) -> torch.Tensor:
    """The dense model with each FFN's output halved."""
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(0.5)
        return torch.as_tensor(model(IDS_BT).logits)


def test_the_readers_compute_the_experts_times_their_probability(dense: Path, tmp_path: Path) -> None:
    """Of four equal probabilities, the two largest sum to a half; renormalised, to one."""
    moe = run_convert(
        dense, tmp_path / "moe", target="qwen2_moe", experts=4, top_k=2, router="zeros", allow_dead_router=True
    )
    right, theirs, largest = logits(dense), logits(moe, norm_topk_prob=False), logits(dense).abs().max()
    assert (logits(moe) - right).abs().max() <= 1e-5 * largest
    assert (theirs - halved(dense)).abs().max() <= 1e-5 * largest
    assert (theirs - right).abs().max() > 0.1 * largest


def test_the_plan_says_so(dense: Path) -> None:
    told = plan(Plan(model=str(dense), target="qwen2_moe")).account.reader_limits
    assert any("norm_topk_prob" in text for text in told)
