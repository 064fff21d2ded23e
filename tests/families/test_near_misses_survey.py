"""Settings of Arcee, Cohere, SmolLM3 and Granite 4 that no target computes: each is refused with its reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import edit_json, run_convert
from tests.drawn_adapters import draw_adapter, formula_model
from tests.families.models import MODELS, Model, save_model
from tests.families.models.survey import AFM, COHERE, GRANITE, SMOL
from tests.merging import logits_error, run_merge
from upcycle.errors import UnsupportedError

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "arcee, another activation": ("arcee", {**AFM, "hidden_act": "gelu"}, "hidden_act = 'gelu': an FFN without a gate"),
    "arcee, biases of the FFN": ("arcee", {**AFM, "mlp_bias": True}, "mlp_bias = True: the target has no such bias"),
    "cohere, norms of queries": (
        "cohere", {**COHERE, "eos_token_id": 2, "use_qk_norm": True},
        "use_qk_norm = True: the target does not normalise queries",
    ),
    "helium, biases of the FFN": ("helium", {"head_dim": 8, "mlp_bias": True}, "mlp_bias = True: the target has no"),
    "smollm3, biases of the FFN": ("smollm3", {**SMOL, "mlp_bias": True}, "mlp_bias = True: the target has no such"),
    "granite4, experts": (
        "granitemoehybrid", {**GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2},
        "a mixture of experts already; found num_local_experts = 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    model_type, fields, why = REFUSED[name]
    dense = save_model(name, Model(model_type, "", fields), tmp_path / "dense")
    with pytest.raises(UnsupportedError, match=why):
        run_convert(dense, tmp_path / "moe")


@pytest.mark.parametrize(
    ("name", "fields", "why"),
    [
        ("smollm3", {"no_rope_layers": [1, 0, 1]}, "no_rope_layers = .*expected 1 for each layer that rotates and 0"),
        ("smollm3", {"layer_types": ["chunked_attention"] * 4}, "expected sliding_attention or full_attention of each"),
        ("granite4", {"layer_types": ["conv"] * 3}, "expected linear_attention or full_attention of each layer"),
        ("granite4", {"normalization_function": "layernorm"}, "the class knows no other norm"),
    ],
)
def test_configs_that_make_no_sense_are_refused(
    tmp_path: Path, copy_of: Callable[[Path], Path], name: str, fields: dict[str, Any], why: str
) -> None:
    dense = copy_of(save_model(name, MODELS[name], tmp_path / "dense"))
    edit_json(dense / "config.json", **fields)
    with pytest.raises(UnsupportedError, match=why):
        run_convert(dense, tmp_path / "moe")


@pytest.mark.parametrize("name", ["cohere", "smollm3_windows"])
def test_adapters_of_experts_and_attention_merge(tmp_path: Path, name: str) -> None:
    dense = save_model(name, MODELS[name], tmp_path / "dense")
    adapter = draw_adapter(dense, tmp_path / "adapter", "lora", attention_rank=2)
    run_merge(adapter, dense, tmp_path / "out")
    assert logits_error(formula_model(dense, adapter), tmp_path / "out") <= 1e-5


def test_layers_of_granite_4_may_have_their_older_names(tmp_path: Path, copy_of: Callable[[Path], Path]) -> None:
    dense = copy_of(save_model("granite4", MODELS["granite4"], tmp_path / "dense"))
    edit_json(dense / "config.json", layer_types=..., layers_block_type=["mamba", "attention", "mamba"])
    moe = AutoModelForCausalLM.from_pretrained(run_convert(dense, tmp_path / "moe"))
    assert moe.config.layer_types == ["linear_attention", "full_attention", "linear_attention"]


def test_a_cohere_rotates_and_attends_beyond_its_max_position_embeddings(tmp_path: Path) -> None:
    dense = save_model("cohere", MODELS["cohere"], tmp_path / "dense")
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (dense, run_convert(dense, tmp_path / "moe"))]
    ids_BT = torch.randint(0, 96, (1, 100), generator=torch.Generator().manual_seed(3))  # of 64
    with torch.no_grad():
        theirs_BTV, ours_BTV = (model(ids_BT).logits for model in models)
    assert (ours_BTV - theirs_BTV).abs().max() <= 1e-5 * theirs_BTV.abs().max()
