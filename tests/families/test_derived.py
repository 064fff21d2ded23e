"""Fields that a dense class derives from others are read as the class reads them, however a config is written."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP

from tests.conftest import edit_json
from tests.families.models import MODELS, save_model
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import UnsupportedError
from upcycle.families.config import target_config
from upcycle.families.match import match
from upcycle.families.pairs import pair_of

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere2": ("cohere2", {"num_hidden_layers": 7}),
    "cohere2, pattern": ("cohere2", {"num_hidden_layers": 7, "sliding_window_pattern": 3}),
    "cohere2, list before pattern": (
        "cohere2", {"num_hidden_layers": 1, "layer_types": ["full_attention"], "sliding_window_pattern": 3},
    ),
    "qwen3_5": ("qwen3_5_text", {"num_hidden_layers": 9}),
    "qwen3_5, interval": ("qwen3_5_text", {"num_hidden_layers": 5, "full_attention_interval": 2}),
    "lfm2": ("lfm2", {"num_hidden_layers": 3}),
    "lfm2, indices": ("lfm2", {"num_hidden_layers": 5, "full_attn_idxs": [1, 4]}),
    "lfm2, no attention": ("lfm2", {"num_hidden_layers": 2, "full_attn_idxs": []}),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_layers(name: str) -> None:
    model_type, fields = KINDS[name]
    ours = target_config(pair_of(model_type), {"model_type": model_type, **fields})
    assert ours["layer_types"] == CONFIG_MAPPING[model_type](**fields).layer_types


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"intermediate_size": 6912},
        {"block_ff_dim": 12288, "intermediate_size": 5},  # the name in published configs comes first
        {"block_ffn_dim_multiplier": 1.3, "block_multiple_of": 40},
        {"block_auto_adjust_ff_dim": False, "intermediate_size": 1000},
    ],
    ids=str,
)
def test_the_width_of_an_lfm2(fields: dict[str, Any]) -> None:
    ours = target_config(pair_of("lfm2"), {"model_type": "lfm2", **fields})
    with torch.device("meta"):
        assert ours["intermediate_size"] == Lfm2MLP(Lfm2Config(**fields)).w1.out_features


def test_an_lfm2_as_it_is_published(tmp_path: Path) -> None:
    saved = save_model("lfm2_some_layers", MODELS["lfm2_some_layers"], tmp_path / "saved")
    published = shutil.copytree(saved, tmp_path / "published")
    edit_json(
        published / "config.json",
        layer_types=..., intermediate_size=..., block_ff_dim=48, tie_word_embeddings=..., tie_embedding=False,
    )  # fmt: skip
    assert match(open_checkpoint(published)).config == match(open_checkpoint(saved)).config


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_hidden_layers": 2**31 - 1}, "layer_types"),  # no list of two thousand million
        ({"intermediate_size": 10**400}, "intermediate_size = 1000"),
        ({"block_ff_dim": "12288"}, "intermediate_size = '12288': expected a size"),
        ({"block_ffn_dim_multiplier": float("inf")}, "intermediate_size is null"),
        ({"block_multiple_of": 0}, "intermediate_size is null"),
        ({"tie_embedding": 1}, "tie_word_embeddings = 1: expected a flag"),
    ],
    ids=str,
)
def test_fields_that_make_no_sense(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedError, match=problem):
        target_config(pair_of("lfm2"), {"model_type": "lfm2", **fields})
