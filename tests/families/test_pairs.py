"""Every pair end to end: converted, computing the same in stock transformers, verified, trained, merged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import edit_json, run_convert
from tests.convert.test_convert import raw, tensors
from tests.drawn_adapters import draw_adapter, formula_model
from tests.families.models import MODELS
from tests.merging import logits_error, run_merge
from upcycle.errors import UnsupportedError
from upcycle.pipeline.stages import attach, verify
from upcycle.requests import Attach, Verify


def load(directory: Path) -> Any:
    """The model in float32; nothing may be missing, left over or newly made."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype=torch.float32)
    assert {name: keys for name, keys in info.items() if keys} == {}
    return model.eval()


def written(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """Twenty tokens of greedy text."""
    written_BT: torch.Tensor = model.generate(
        ids_BT, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return written_BT


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("no_second_process")
def test_the_same_function_and_a_receipt_that_says_so(made: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    model, dense, out = MODELS[name], made(name), tmp_path / "moe"
    run_convert(dense, out, **model.options)
    ours, theirs = load(out), load(dense)
    assert ours.config.model_type == model.becomes
    # 40 tokens: longer than windows, and than the length after which longrope takes its other factors
    ids_BT = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours_BTV, theirs_BTV = ours(ids_BT).logits, theirs(ids_BT).logits
    largest = theirs_BTV.abs().max()
    assert largest > 1, "logits too flat to tell two models apart"
    assert (ours_BTV - theirs_BTV).abs().max() <= model.tolerance * largest
    if model.greedy:
        assert written(ours, ids_BT[:, :8]).equal(written(theirs, ids_BT[:, :8]))
    report = verify(Verify(dense=str(dense), moe=str(out)))
    assert report.passed, report.lines
    assert json.loads((out / "upcycle.json").read_bytes())["exact"] is model.exact


def test_fused_matrices_are_split_byte_for_byte(made: Callable[[str], Path], tmp_path: Path) -> None:
    dense, moe = tensors(made("phi3")), tensors(run_convert(made("phi3"), tmp_path / "moe"))
    qkv, gate_up = (dense[f"model.layers.1.{name}.weight"] for name in ("self_attn.qkv_proj", "mlp.gate_up_proj"))
    for name, rows in (("q", slice(0, 32)), ("k", slice(32, 48)), ("v", slice(48, 64))):  # 4 and 2 heads of 8
        assert raw(moe[f"model.layers.1.self_attn.{name}_proj.weight"]) == raw(qkv[rows])
    for expert in range(4):
        w1, w3 = (moe[f"model.layers.1.block_sparse_moe.experts.{expert}.{name}.weight"] for name in ("w1", "w3"))
        assert (raw(w1), raw(w3)) == (raw(gate_up[:48]), raw(gate_up[48:]))


def test_noise_on_rows_of_a_fused_matrix_counts_their_own_spread(made: Callable[[str], Path], tmp_path: Path) -> None:
    dense, moe = tensors(made("phi3")), tensors(run_convert(made("phi3"), tmp_path / "moe", noise=0.1))
    up = dense["model.layers.0.mlp.gate_up_proj.weight"][48:]
    difference = moe["model.layers.0.block_sparse_moe.experts.2.w3.weight"] - up
    assert float(difference.std() / up.std()) == pytest.approx(0.1, rel=0.1)


def test_what_the_targets_cannot_express(made: Callable[[str], Path], copy_of: Callable[[Path], Path]) -> None:
    qwen = copy_of(made("qwen3"))
    edit_json(qwen / "config.json", use_sliding_window=True, sliding_window=4)
    with pytest.raises(UnsupportedError, match="use_sliding_window = True: the target computes every layer alike"):
        run_convert(qwen, qwen.parent / "out", target="qwen3_moe")


def test_partial_rotation_is_refused(made: Callable[[str], Path], copy_of: Callable[[Path], Path]) -> None:
    phi = copy_of(made("phi3"))
    edit_json(phi / "config.json", rope_parameters=..., partial_rotary_factor=0.75)
    with pytest.raises(UnsupportedError, match="partial_rotary_factor is not 1"):
        run_convert(phi, phi.parent / "out")


@pytest.mark.parametrize("kind", ["lora", "bottleneck", "ia3"])
def test_adapter_experts_of_qwen3_merge_into_its_mixture(
    made: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    base = made("qwen3")
    adapter = draw_adapter(base, tmp_path / "adapter", kind, attention_rank=2)
    run_merge(adapter, base, tmp_path / "out")
    assert logits_error(formula_model(base, adapter), tmp_path / "out") <= 1e-5


@pytest.mark.parametrize(("name", "rows"), [("qwen3", {48}), ("phi3", {48})])
def test_adapter_experts_of_a_fused_matrix_keep_gate_and_up_apart(
    made: Callable[[str], Path], name: str, rows: set[int], tmp_path: Path
) -> None:
    attach(Attach(model=str(made(name)), out=str(tmp_path / name), experts=(2,)))
    found = tensors(tmp_path / name)
    assert {value.shape[1] for key, value in found.items() if key.endswith(("gate_B", "up_B"))} == rows


def test_qwen3_has_no_compact_form(made: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = draw_adapter(made("qwen3"), tmp_path / "adapter", "bottleneck")
    with pytest.raises(UnsupportedError, match="no compact mixture of such a model is known; found qwen3"):
        run_merge(adapter, made("qwen3"), tmp_path / "out", to="compact")
