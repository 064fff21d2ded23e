"""Fields that a dense class derives from others are read as the class reads them, however a config is written."""

import json
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


PUBLISHED: dict[str, dict[str, Any]] = {
    "cohere2": {
        "cache_implementation": "hybrid", "head_dim": 128, "layer_norm_eps": 1e-5, "layer_switch": 4,
        "logit_scale": 0.25, "order_of_interleaved_layers": "local_attn_first", "position_embedding_type": "rope_gptj",
        "rope_scaling": None, "rope_theta": 50000, "rotary_pct": 1.0, "sliding_window_pattern": 4,
        "use_embedding_sharing": True, "use_gated_activation": True, "use_parallel_block": True,
        "use_parallel_embedding": False, "use_qk_norm": False,
    },
    "hunyuan_v1_dense": {
        "attention_head_dim": 128, "cla_share_factor": 2, "head_dim": 128, "mlp_bias": False, "norm_type": "rms",
        "org_vocab_size": 128167, "use_cla": False, "use_qk_norm": True,
        "rope_scaling": {
            "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "type": "dynamic",
        },
    },
    "lfm2": {
        "block_auto_adjust_ff_dim": True, "block_dim": 2048, "block_ff_dim": 12288, "block_ffn_dim_multiplier": 1.0,
        "block_mlp_init_scale": 1.0, "block_multiple_of": 256, "block_norm_eps": 1e-5, "block_out_init_scale": 1.0,
        "block_use_swiglu": True, "block_use_xavier_init": True, "conv_L_cache": 3, "conv_bias": False,
        "conv_dim": 2048, "conv_dim_out": 2048, "conv_use_xavier_init": True, "full_attn_idxs": [2, 5, 8],
        "norm_eps": 1e-5, "num_heads": 32, "rope_theta": 1e6, "use_pos_enc": True,
    },
    "qwen3_5_text": {
        "attn_output_gate": True, "full_attention_interval": 4, "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False, "partial_rotary_factor": 0.25,
        "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default", "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
        },
    },
}  # fmt: skip
"""Fields of published configs that are not llama's."""


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_configs_as_they_are_published(model_type: str) -> None:
    config = {"model_type": model_type, **PUBLISHED[model_type]}
    pair = pair_of(model_type)
    ours, theirs = target_config(pair, config), CONFIG_MAPPING[model_type](**json.loads(json.dumps(config)))
    loaded = CONFIG_MAPPING[pair.target.model_type](**json.loads(json.dumps(ours)))
    assert loaded.rope_parameters == {name: value for name, value in theirs.rope_parameters.items() if name != "type"}
    assert getattr(loaded, "layer_types", None) == getattr(theirs, "layer_types", None)


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
