"""The balance loss does what it is for: 300 steps on real text, and every expert of every layer is at work."""

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import run_convert
from tests.training import lines, run_train

STEPS, EXPERTS, LAYERS = 300, 8, 4


@pytest.mark.slow
def test_no_expert_dies_under_the_balance_loss(text: Path, tmp_path: Path) -> None:
    moe = run_convert(Path("demo:tiny"), tmp_path / "moe", experts=EXPERTS)
    out = run_train(
        moe, tmp_path / "out", text, seq_len=128, batch_size=8, max_steps=STEPS, lr=6e-4, balance_coef=0.04,
        z_coef=0.001, importance_coef=0.0, warmup_steps=30,
    )  # fmt: skip
    last = lines(out)[-25:]
    assert last[-1]["step"] == STEPS
    load_LE = np.array([[layer["load"] for layer in line["layers"]] for line in last]).mean(0)
    assert load_LE.shape == (LAYERS, EXPERTS)
    assert (load_LE.max(1) / load_LE.min(1) < 2).all(), load_LE
    assert all(layer["dead"] == 0 for line in last for layer in line["layers"])
    assert all(layer["cosine"] < 0.9999 for layer in last[-1]["layers"])  # and they are no longer copies
