"""What Granite's mixtures and Qwen2-MoE cannot compute of the dense models that they take, refused with the reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.conftest import edit_json, run_convert
from tests.drawn_adapters import draw_adapter, formula_model
from tests.families.models import MODELS, save_model
from tests.merging import logits_error, run_merge
from tests.models import SMALL
from upcycle.errors import UnsupportedError
from upcycle.families.pairs import TARGETS
from upcycle.pipeline.stages import plan
from upcycle.requests import Plan

WINDOW = "the target has no sliding window in some of its layers"
NO_BIAS = "the target has no such bias"

Made = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Made:
    """Return a function: model of `MODELS`, config fields that it has besides -> its directory."""

    def save(name: str, **fields: Any) -> Path:
        model = MODELS[name]
        return save_model(name, replace(model, fields={**model.fields, **fields}), tmp_path / "dense")

    return save


NEAR_MISSES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "granite, FFN biases": ("granite", {"mlp_bias": True}, {}, f"granitemoe .*mlp_bias = True: {NO_BIAS}"),
    "granite_swa, FFN biases": ("granite_swa", {"mlp_bias": True}, {}, f"granitemoe_swa .*mlp_bias = True: {NO_BIAS}"),
    "seed_oss, FFN biases": ("seed_oss", {"mlp_bias": True}, {}, f"granitemoe .*mlp_bias = True: {NO_BIAS}"),
    "llama, FFN biases": ("llama_bias_llama3", {"mlp_bias": True}, {}, f"granitemoe .*mlp_bias = True: {NO_BIAS}"),
    "llama, attention biases": (
        "llama_bias_shared", {}, {"target": "qwen2_moe"}, f"qwen2_moe .*attention_bias = True: {NO_BIAS}"
    ),
    "seed_oss, bias of the output": (
        "seed_oss_out_bias", {}, {"target": "qwen2_moe"}, f"qwen2_moe .*attention_out_bias = True: {NO_BIAS}"
    ),
    "qwen2, some layers with a window": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, {},
        rf"layer_types = \['full_attention', 'sliding_attention'\]: {WINDOW}",
    ),
    "qwen2, all layers with a window": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention"] * 2},
        {"target": "qwen2_moe"}, rf"layer_types = \['sliding_attention', 'sliding_attention'\]: {WINDOW}",
    ),
    "granite, a part of each head rotated": (
        "granite", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, {},
        "partial_rotary_factor is not 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_what_no_target_computes(saved: Made, tmp_path: Path, case: str) -> None:
    name, fields, options, reason = NEAR_MISSES[case]
    with pytest.raises(UnsupportedError, match=reason):
        run_convert(saved(name, **fields), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "windowed"),
    [
        ({"use_sliding_window": True}, False),  # 2 layers, and max_window_layers is 28 where it is left out
        ({"use_sliding_window": True, "max_window_layers": 1}, True),
        ({"use_sliding_window": True, "max_window_layers": 1, "sliding_window": None}, False),
        ({"use_sliding_window": True, "max_window_layers": 1, "layer_types": ["full_attention"] * 2}, False),
        ({"use_sliding_window": False, "max_window_layers": 0, "sliding_window": 5}, False),
    ],
)
def test_windows_of_qwen2_are_read_as_its_class_reads_them(saved: Made, fields: dict[str, Any], windowed: bool) -> None:
    """As transformers 4 writes configs: without layer_types."""
    dense = saved("qwen2")
    absent = dict.fromkeys(("layer_types", "sliding_window", "max_window_layers", "use_sliding_window"), ...)
    edit_json(dense / "config.json", **{**absent, **fields})
    config = CONFIG_MAPPING["qwen2"](**json.loads((dense / "config.json").read_bytes()))
    assert ("sliding_attention" in config.layer_types) == windowed
    if windowed:
        with pytest.raises(UnsupportedError, match=f"use_sliding_window = True: {WINDOW}"):
            plan(Plan(model=str(dense)))
    else:
        made = plan(Plan(model=str(dense))).plan.config
        assert not {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"} & set(made)


@pytest.mark.parametrize(
    ("name", "field"),
    [("granite", "mlp_bias"), ("qwen2", "max_window_layers"), ("seed_oss", "mlp_bias")],
)
def test_what_is_refused_would_break(saved: Made, tmp_path: Path, name: str, field: str) -> None:
    """The dense model without what the target lacks computes something else."""
    fields = {"use_sliding_window": True, "sliding_window": 5, field: 0} if name == "qwen2" else {field: True}
    model = AutoModelForCausalLM.from_pretrained(saved(name, **fields))
    without = AutoModelForCausalLM.from_pretrained(save_model(name, MODELS[name], tmp_path / "without"))
    without.load_state_dict(model.state_dict(), strict=False)
    ids_BT = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found, expected = without(ids_BT).logits, model(ids_BT).logits
    assert float((found - expected).abs().max() / expected.abs().max()) > 1e-2


SIZES = {
    "granitemoeshared": {"num_local_experts": 4, "shared_intermediate_size": 0, "attention_bias": True},
    "granitemoe_swa": {"num_local_experts": 4, "shared_intermediate_size": 0, "tie_word_embeddings": False},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 32},
}
NAMES = {"granitemoeshared": "qwen2_shared", "granitemoe_swa": "granite_swa_untied", "qwen2_moe": "seed_oss_no_bias"}


@pytest.mark.parametrize("target", SIZES)
def test_tensors_are_those_that_the_stock_class_saves(saved: Made, tmp_path: Path, target: str) -> None:
    fields = {**SMALL, "head_dim": 10 if target == "qwen2_moe" else 8, **SIZES[target]}
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[target](**fields)).save_pretrained(tmp_path / "stock")
    run_convert(saved(NAMES[target]), tmp_path / "out", target=target)
    assert shapes(tmp_path / "out") == shapes(tmp_path / "stock")


def shapes(directory: Path) -> dict[str, list[int]]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no dict


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("granite_bias_tied", None), ("granite_swa", None), ("qwen2", None), ("qwen2", "qwen2_moe"),
        ("seed_oss_only_out_bias", None), ("llama_bias_shared", None),
    ],
)  # fmt: skip
def test_compact_forms(saved: Made, tmp_path: Path, name: str, target: str | None) -> None:
    """The dense FFN is the shared expert, and multipliers, biases and sinks are there beside the small experts."""
    base = saved(name)
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck", attention_rank=2)
    run_merge(adapter, base, tmp_path / "out", to="compact", target=target)
    found = json.loads((tmp_path / "out" / "config.json").read_bytes())["model_type"]
    assert found == target or found in ("granitemoeshared", "granitemoe_swa")
    assert logits_error(formula_model(base, adapter), tmp_path / "out") <= 1e-5


def test_readers_are_told_of_what_they_get_wrong() -> None:
    plain = {
        "head_dim": 8, "num_attention_heads": 4, "hidden_size": 32, "hidden_act": "silu", "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default"},
    }  # fmt: skip

    def told(**fields: Any) -> str:
        return " ".join(TARGETS["granitemoe"].reader_limits({**plain, **fields}))

    assert told() == ""
    assert "llama.cpp and mlx-lm compute SiLU" in told(hidden_act="gelu")
    assert "llama.cpp refuses a head_dim" in told(head_dim=10)
    assert "mlx-lm gives the experts' outputs to the wrong tokens" in told(num_experts_per_tok=1)
