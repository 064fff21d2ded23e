"""Settings of models that are nearly llamas, which their mixture does not compute: refused by name, with the reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import edit_json, run_convert
from tests.families.models import MODELS, Model, save_model
from upcycle.errors import UnsupportedError

FULL, WINDOW = "full_attention", "sliding_attention"
NO_BIAS = "the target has no such bias"

NEAR_MISSES: dict[str, tuple[str, dict[str, Any], str]] = {
    "ministral_mixed": (
        "ministral_window", {"layer_types": [FULL, WINDOW]}, "layer_types = .*: the target computes every layer alike",
    ),
    "internlm3_bias": ("internlm3", {"attention_bias": True, "mlp_bias": True}, f"attention_bias = True: {NO_BIAS}"),
    "gemma_bias": ("gemma", {"attention_bias": True}, f"attention_bias = True: {NO_BIAS}"),
    "gemma_bidirectional": (
        "gemma", {"use_bidirectional_attention": True}, "in the target a token attends only to those before it",
    ),
    "olmo3_window": (
        "olmo3", {"layer_types": [FULL, WINDOW]}, "layer_types = .*: the target has no sliding window",
    ),
    "ernie4_5_bias": ("ernie4_5", {"use_bias": True}, "use_bias = True: the experts of the target have no biases"),
    "helium_bias": ("helium", {"mlp_bias": True}, f"mlp_bias = True: {NO_BIAS}"),
}  # fmt: skip
"""Name -> (a model that can be converted, the fields of its config that are otherwise, what is said)."""


def logits(directory: Path) -> torch.Tensor:
    ids_BT = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(ids_BT).logits
    return found


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_what_the_mixture_does_not_compute_is_refused(tmp_path: Path, name: str) -> None:
    """The setting matters: with it, the same weights, and biases where it brings some, give other logits."""
    like, changed, why = NEAR_MISSES[name]
    plain = MODELS[like]
    other = Model(plain.model_type, plain.becomes, {**plain.fields, **changed})
    dense = save_model(like, other, tmp_path / "dense")
    with pytest.raises(UnsupportedError, match=why):
        run_convert(dense, tmp_path / "out")
    with_setting = logits(dense)
    edit_json(dense / "config.json", **{field: plain.fields.get(field, ...) for field in changed})
    assert (logits(dense) - with_setting).abs().max() > 1e-2 * with_setting.abs().max()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "internlm3_qkv_bias": ("internlm3", {"qkv_bias": True}, f"qkv_bias = True: {NO_BIAS}"),
    "iquestcoder_clip": ("iquestcoder", {"clip_qkv": 8.0}, "clip_qkv = 8.0: IQuestCoderConfig refuses it, too"),
    "iquestcoder_window": ("iquestcoder", {"use_sliding_window": True}, "use_sliding_window = True: IQuestCoderConfig"),
    "gemma_activation": (
        "gemma", {"hidden_activation": "gelu"}, "transformers 4 computes this, transformers 5 hidden_act",
    ),
    "olmo3_by_default": ("olmo3", {"layer_types": None}, "three of four layers of an OLMo 3 have"),
    "olmo3_flat_rope": (
        "olmo3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "no settings of full_attention",
    ),
}  # fmt: skip
"""The same, where only the config is looked at."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_the_config_says_is_refused(tmp_path: Path, name: str) -> None:
    like, changed, why = REFUSED[name]
    dense = save_model(like, MODELS[like], tmp_path / "dense")
    edit_json(dense / "config.json", **changed)
    with pytest.raises(UnsupportedError, match=why):
        run_convert(dense, tmp_path / "out")


def test_gelu_of_the_first_gemmas_is_its_approximation(tmp_path: Path) -> None:
    dense = save_model("gemma", MODELS["gemma"], tmp_path / "dense")
    edit_json(dense / "config.json", hidden_act="gelu")
    out = run_convert(dense, tmp_path / "out")
    assert (logits(dense) - logits(out)).abs().max() <= 1e-5 * logits(dense).abs().max()


def test_names_of_classes_outside_transformers(tmp_path: Path) -> None:
    """InternLM3 and IQuest-Coder were published with code of their own, which transformers no longer needs."""
    for like, name in (("internlm3", "InternLM3ForCausalLM"), ("iquestcoder", "IQuestCoderForCausalLM")):
        dense = save_model(like, MODELS[like], tmp_path / like)
        edit_json(dense / "config.json", architectures=[name], auto_map={"AutoModelForCausalLM": f"modeling.{name}"})
        run_convert(dense, tmp_path / f"{like}-moe")


def test_rope_settings_of_olmo3_in_the_older_form(tmp_path: Path) -> None:
    """rope_scaling and rope_theta count for full attention, as Olmo3Config has it."""
    dense = save_model("olmo3", MODELS["olmo3"], tmp_path / "dense")
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    edit_json(dense / "config.json", rope_parameters=..., rope_theta=70000.0, rope_scaling=yarn)
    out = run_convert(dense, tmp_path / "out")
    assert (logits(dense) - logits(out)).abs().max() <= 1e-5 * logits(dense).abs().max()
