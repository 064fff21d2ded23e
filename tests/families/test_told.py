"""What a conversion says where stock classes behave unlike each other though the tensors are right, or do not load."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import edit_json, run_convert
from tests.families.models import Model, save_model
from upcycle.errors import UnsupportedError
from upcycle.pipeline.stages import plan
from upcycle.requests import Plan


def warnings_of(model: Model, directory: Path, **options: Any) -> str:
    return "\n".join(plan(Plan(model=str(save_model("told", model, directory)), **options)).warnings)


def test_a_window_that_only_the_cache_obeys(tmp_path: Path) -> None:
    said = warnings_of(Model("llama", "mixtral", {"sliding_window": 7}), tmp_path / "llama")
    assert "sliding_window 7 is left out, for LlamaForCausalLM attends to everything" in said
    assert "can differ after so many tokens" in said
    assert "sliding_window" not in warnings_of(Model("llama", "mixtral"), tmp_path / "plain")


def test_a_row_of_the_embedding_that_loading_makes_zero(tmp_path: Path) -> None:
    sizes = {"q_lora_rank": 20, "kv_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    model = Model("youtu", "deepseek_v3", {**sizes, "num_key_value_heads": 4, "pad_token_id": 0})
    assert "makes the embedding of pad_token_id zero" in warnings_of(model, tmp_path / "youtu")


@pytest.mark.parametrize("model_type", ["cohere", "cohere2"])
def test_rope_settings_without_the_length_that_they_count_from(model_type: str, tmp_path: Path) -> None:
    fields = {"rms_norm_eps": ..., "layer_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    dense = save_model("told", Model(model_type, "cohere2_moe", fields), tmp_path / "dense")
    edit_json(dense / "config.json", rope_parameters=..., rope_scaling={"rope_type": "yarn", "factor": 2.0})
    with pytest.raises(UnsupportedError, match="of type yarn lack original_max_position_embeddings"):
        run_convert(dense, tmp_path / "moe")


@pytest.mark.parametrize("target", ["glm4_moe", "granitemoeshared", "qwen2_moe"])
@pytest.mark.parametrize("shared", ["zero", "half"])
def test_a_shared_expert_is_padded_with_the_others(target: str, shared: str, tmp_path: Path) -> None:
    dense = save_model("told", Model("llama", target, {"intermediate_size": 50}), tmp_path / "dense")
    out = run_convert(dense, tmp_path / "moe", target=target, shared=shared, pad_width=True)
    ids_BT = torch.randint(0, 96, (1, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours_BTV, theirs_BTV = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids_BT).logits for path in (out, dense)
        )
    assert (ours_BTV - theirs_BTV).abs().max() <= 1e-5 * theirs_BTV.abs().max()


def test_narrow_experts_whose_padding_no_longer_divides_the_shared_one(tmp_path: Path) -> None:
    dense = save_model("told", Model("llama", "glm4_moe", {"intermediate_size": 50}), tmp_path / "dense")
    options: dict[str, Any] = {"target": "glm4_moe", "shared": "dense", "expert_width": 10, "pad_width": True}
    with pytest.raises(UnsupportedError, match="found 52 neurons beside experts of 12"):
        run_convert(dense, tmp_path / "moe", **options)
