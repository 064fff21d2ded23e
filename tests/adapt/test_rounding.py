"""How far a merge may differ from its adapter: as far as rounding moves the adapter itself, and no further."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.adapt.test_compact import float32_copy
from tests.drawn_adapters import draw_adapter
from tests.merging import run_merge
from upcycle.adapt import proof
from upcycle.adapt.merge import _drafted
from upcycle.adapt.rounding import DRAWS, LAST_PLACE, MOST, TOLERANCE, own_rounding, tolerance
from upcycle.plan.report import Report
from upcycle.requests.merge import Merge


class Cancelling(nn.Module):
    """Two logits that are a difference of large numbers: `(1 + a) x - x`, a = 2^-10."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.tensor([[1 + 2**-10], [1 + 2**-10]]))
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        assert not use_cache
        x_BT1 = input_ids.float()[..., None]
        logits_BTV = x_BT1 @ self.large.T - x_BT1 * self.one
        return type("Output", (), {"logits": logits_BTV})


def test_the_rounding_of_a_difference_of_large_numbers() -> None:
    """A unit in the last place of 1, 2^-23, is 2^-13 of a difference of 2^-10; both numbers are moved by up to one."""
    model, ids_T = Cancelling(), torch.tensor([3])
    logits_TV = model(ids_T[None], use_cache=False).logits[0].detach()
    assert logits_TV.tolist() == [[3 * 2**-10] * 2]
    found = own_rounding(model, ids_T, logits_TV)
    assert LAST_PLACE / 2**-10 / 10 < found <= 3 * LAST_PLACE / 2**-10
    assert found < 2 * DRAWS * 2**-13


def test_tolerance_is_four_times_the_rounding_within_bounds() -> None:
    # float32's order of summation is allowed to any merge, and nothing excuses a thousandth
    assert tolerance(1e-7) == TOLERANCE == 1e-5
    assert tolerance(2e-5) == pytest.approx(8e-5)
    assert tolerance(0.5) == MOST == 1e-3


@pytest.mark.slow  # three proofs
def test_an_ill_conditioned_merge_is_proven_and_a_slightly_wrong_one_is_not(tiny: Path, tmp_path: Path) -> None:
    """A large random LoRA on the attention turns rounding into more than 1e-5 of the largest logit."""
    base = float32_copy(tiny, tmp_path / "base")
    fields = {"attention_rank": 64, "attention_scaling": 2.0}
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck", **fields)
    merged = run_merge(adapter, base, tmp_path / "out", proven=True)
    assert merged.report
    parity = merged.report.figures["parity"]
    assert parity["rounding"] > TOLERANCE
    assert parity["relative"] <= parity["tolerance"] == pytest.approx(4 * parity["rounding"])
    line = next(line for line in merged.report.lines if line.name == "logits")
    assert line.verdict == "ok"
    assert f"rounding alone moves the adapter's by {parity['rounding']:.1e}" in line.text

    weights = tmp_path / "out/model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.0.block_sparse_moe.experts.2.w2.weight"] *= 1.001
    save_file(tensors, weights, {"format": "pt"})
    report = Report()
    drafted, _, _ = _drafted(adapter, base, Merge(adapter=str(adapter), out=str(tmp_path / "out")))
    places = (base, adapter, tmp_path / "out")
    proof._report_models(report, drafted, drafted, places, 2, torch.arange(64) % 96, None)
    verdicts = {line.name: line.verdict for line in report.lines}
    assert (verdicts["loading"], verdicts["logits"]) == ("ok", "FAIL")
    assert parity["tolerance"] < report.figures["parity"]["relative"] < 1e-2
