"""Settings of dense models that mixtures with sigmoid routers cannot compute: each is refused by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import edit_json, run_convert
from tests.families.models import Model, save_model
from tests.families.models.sigmoid import LATENT, PARTLY
from upcycle.errors import UnsupportedError

WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "head_dim": 8}


@dataclass(frozen=True)
class Miss:
    """A dense model that a target cannot express."""

    model: Model
    why: str
    without: dict[str, Any] | None = None  # edits of its config that hide the setting: then it converts, and is wrong


MISSES = {
    "glm4: bias of the output projection": Miss(
        Model("llama", "glm4_moe", {"attention_bias": True}), "attention_bias = True: the target has no such bias",
    ),
    "glm4: the same of a qwen3": Miss(
        Model("qwen3", "glm4_moe", {"attention_bias": True}), "attention_bias = True: the target has no such bias",
    ),
    "solar: the same of a llama": Miss(
        Model("llama", "solar_open", {"attention_bias": True}), "attention_bias = True: the target has no such bias",
    ),
    "glm4: bias of the FFN": Miss(
        Model("llama", "glm4_moe", {"mlp_bias": True}), "mlp_bias = True: the target has no such bias",
    ),
    "glm4: a share of each head that llama does not obey": Miss(
        Model("llama", "glm4_moe", {"rope_parameters": PARTLY}),
        "partial_rotary_factor is not 1, which the dense class ignores",
    ),
    "glm4: windows of a qwen2": Miss(
        Model("qwen2", "glm4_moe", WINDOW), r"'sliding_attention'\]: the target has no sliding window",
        {"use_sliding_window": False, "layer_types": ...},
    ),
    "glm4: windows of a qwen3": Miss(
        Model("qwen3", "glm4_moe", WINDOW), "use_sliding_window = True: the target",
        {"use_sliding_window": False, "layer_types": ...},
    ),
    "hunyuan: windows of a qwen3": Miss(
        Model("qwen3", "hy_v3", WINDOW), "use_sliding_window = True: the target",
        {"use_sliding_window": False, "layer_types": ...},
    ),
    "glm4: window of a phi3": Miss(
        Model("phi3", "glm4_moe", {"rope_parameters": PARTLY, "sliding_window": 5, "pad_token_id": 0}),
        "sliding_window = 5: the target has no sliding window", {"sliding_window": None},
    ),
    "deepseek: queries that are not compressed": Miss(
        Model("youtu", "deepseek_v3", {**LATENT, "q_lora_rank": None}), "q_lora_rank = None: expected a size",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSES)
def test_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    miss = MISSES[name]
    target = {"target": miss.model.becomes, **miss.model.options}
    dense = save_model(name, miss.model, tmp_path / "dense")
    theirs = AutoModelForCausalLM.from_pretrained(dense).eval()
    with pytest.raises(UnsupportedError, match=miss.why):
        run_convert(dense, tmp_path / "moe", **target)
    if miss.without is None:
        return
    edit_json(dense / "config.json", **miss.without)
    ours = AutoModelForCausalLM.from_pretrained(run_convert(dense, tmp_path / "moe", **target)).eval()
    ids_BT = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours_BTV, theirs_BTV = ours(ids_BT).logits, theirs(ids_BT).logits
    assert (ours_BTV - theirs_BTV).abs().max() > 1e-3 * theirs_BTV.abs().max()


def test_a_rotary_width_of_its_own_is_refused(tmp_path: Path) -> None:
    dense = save_model("youtu", Model("youtu", "deepseek_v3", LATENT), tmp_path / "dense")
    edit_json(dense / "config.json", head_dim=8)
    with pytest.raises(UnsupportedError, match="head_dim = 8: the rotary positions of this attention are as wide as"):
        run_convert(dense, tmp_path / "moe")
    edit_json(dense / "config.json", head_dim=...)
    assert run_convert(dense, tmp_path / "moe")
