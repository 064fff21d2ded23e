"""Small random models of the families beside llama and mistral, as readers get them: one for each target, and more.

Each differs from the plain one of its pair in one setting, so that a reader's mistake has one cause. Every mixture
comes twice: with experts that are copies, held against the dense model, and with experts that differ.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.families.models import Model, save_model
from tests.families.models.gemma4 import LARGE_ONE, SMALL_ONE
from tests.families.models.granite import MULTIPLIERS
from tests.families.models.sigmoid import LATENT
from tests.interop import pairs
from tests.interop.pairs import POSITIONS, VOCABULARY, Pair
from tests.models import LLAMA3_ROPE, YARN_ROPE

LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 7000.0, "factor": 3.0}
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
"""What SmolLM2's tokenizer wants of a config."""

TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
VARIATIONS: dict[str, dict[str, Any]] = {
    "linear": {"rope_parameters": LINEAR_ROPE},
    "yarn": {"rope_parameters": YARN_ROPE},
    "llama3": {"rope_parameters": LLAMA3_ROPE},
    "odd_head": {"head_dim": 10},
    "gelu": {"hidden_act": "gelu"},
    "tied": TIED,
    "bias": {"attention_bias": True},
    "as_saved": {},
    "no_gqa": {"num_key_value_heads": 4},
    "rope": {"position_embedding_type": "rope"},
    "two_groups": {"mamba_n_groups": 2},
}
"""A setting -> the fields that make it."""

_SWA = {"layer_types": ["full_attention", "full_attention"], **MULTIPLIERS}
_LINEAR_ATTENTION = {
    "num_hidden_layers": 3, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_conv_kernel_dim": 4, "head_dim": 16, "full_attention_interval": 3, **UNTIED,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}  # fmt: skip
_HYBRID = {
    **MULTIPLIERS, "num_hidden_layers": 3, "num_local_experts": 0, "num_experts_per_tok": 0,
    "shared_intermediate_size": 48, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
    "mamba_chunk_size": 8, "mamba_d_conv": 4, "position_embedding_type": "nope", **UNTIED,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip

PLAIN: dict[str, tuple[Model, tuple[str, ...]]] = {
    "gemma": (Model("gemma", "mixtral", {"head_dim": 8}), ()),
    "qwen3": (Model("qwen3", "qwen3_moe", {"head_dim": 8}), ("linear", "yarn", "llama3", "odd_head", "tied", "bias")),
    "llama_bias": (Model("llama", "granitemoe", {"attention_bias": True}), ()),
    "qwen2": (Model("qwen2", "granitemoe"), ("linear", "yarn", "llama3", "odd_head", "tied", "gelu")),
    "qwen2_shared": (Model("qwen2", "granitemoeshared", {}, {"target": "granitemoeshared"}), ()),
    "qwen2_qwen2_moe": (Model("qwen2", "qwen2_moe", {}, {"target": "qwen2_moe"}), ("tied", "yarn")),
    "qwen2_half": (Model("qwen2", "qwen2_moe", {}, {"target": "qwen2_moe", "shared": "half"}), ()),
    "llama_qwen2_moe": (Model("llama", "qwen2_moe", {}, {"target": "qwen2_moe"}), ()),
    "granite": (Model("granite", "granitemoe", MULTIPLIERS), ("bias", "tied")),
    "granite_shared": (Model("granite", "granitemoeshared", MULTIPLIERS, {"target": "granitemoeshared"}), ("bias",)),
    "granite_swa": (Model("granite_swa", "granitemoe_swa", _SWA), ()),
    "smollm3": (Model("smollm3", "granitemoe_swa", {"num_hidden_layers": 4}), ()),
    "granite4": (Model("granitemoehybrid", "granitemoehybrid", _HYBRID), ("as_saved", "rope", "two_groups")),
    "olmo2": (Model("olmo2", "flex_olmo"), ()),
    "gemma4_small": (
        Model("gemma4_text", "gemma4_text", {**SMALL_ONE, "vocab_size_per_layer_input": VOCABULARY}, spread=0.3), (),
    ),
    "gemma4_large": (
        Model("gemma4_text", "gemma4_text", {**LARGE_ONE, "attention_bias": False}, spread=0.3), ("as_saved",),
    ),
    "ernie4_5": (Model("ernie4_5", "ernie4_5_moe", {"head_dim": 8}), ("linear", "yarn", "llama3", "odd_head")),
    "glm": (Model("glm", "glm4_moe", {"head_dim": 8}), ()),
    "llama_glm4": (
        Model("llama", "glm4_moe", {}, {"target": "glm4_moe"}), ("linear", "yarn", "llama3", "odd_head", "tied"),
    ),
    "qwen2_glm4": (Model("qwen2", "glm4_moe", {}, {"target": "glm4_moe"}), ()),
    "qwen3_glm4": (Model("qwen3", "glm4_moe", {"head_dim": 8}, {"target": "glm4_moe"}), ()),
    "llama_solar": (
        Model("llama", "solar_open", {}, {"target": "solar_open"}), ("linear", "yarn", "llama3", "odd_head", "tied"),
    ),
    "qwen3_dots1": (
        Model("qwen3", "dots1", {"head_dim": 8}, {"target": "dots1"}),
        ("no_gqa", "tied"),
    ),
    "qwen3_hy_v3": (
        Model("qwen3", "hy_v3", {"head_dim": 8}, {"target": "hy_v3"}), (),
    ),
    "cohere": (Model("cohere", "cohere2_moe", {"logit_scale": 0.7, "rms_norm_eps": ...}), ()),
    "cohere2": (
        Model("cohere2", "cohere2_moe", {
            "num_hidden_layers": 3, "logit_scale": 0.7, "rms_norm_eps": ..., "layer_norm_eps": 3e-3,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        }),
        (),
    ),
    "lfm2": (
        Model("lfm2", "lfm2_moe", {
            "num_hidden_layers": 3, "norm_eps": 3e-3, "rms_norm_eps": ..., "conv_L_cache": 4, "block_multiple_of": 8,
            "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention", "conv"],
        }),
        ("linear", "yarn", "llama3", "tied"),
    ),
    "hunyuan": (Model("hunyuan_v1_dense", "hunyuan_v1_moe", {"head_dim": 8}), ("odd_head", "tied")),
    "qwen3_5": (Model("qwen3_5_text", "qwen3_5_moe_text", _LINEAR_ATTENTION), ()),
    "youtu": (Model("youtu", "deepseek_v3", {**LATENT, **UNTIED}), ("yarn", "tied")),
}  # fmt: skip
"""A model, and the variations in which its pair is tried."""


def models() -> dict[str, Model]:
    """Return every model by its name: the plain ones, each followed by its variations."""
    found = {}
    for name, (plain, variations) in PLAIN.items():
        plain = replace(plain, fields={**TOKENS, "max_position_embeddings": 2 * POSITIONS, **plain.fields})
        found[name] = plain
        for variation in variations:
            found[f"{name}_{variation}"] = replace(plain, fields={**plain.fields, **VARIATIONS[variation]})
    return found


_MAMBA = {"layer_types": ["mamba", "attention", "mamba"]}
PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma4_small": {"per_layer_config": ..., "global_head_dim": 12},
    "gemma4_large": {"per_layer_config": ..., "global_head_dim": 12, "num_global_key_value_heads": 1},
    "granite4": _MAMBA,
    "granite4_rope": _MAMBA,
    "granite4_two_groups": _MAMBA,
}
"""Fields as published configs have them, where transformers 5.23 saves them in another way; `...` leaves one out."""


def save(name: str, root: Path) -> Path:
    """Save a dense model, its config as published ones are; return its directory."""
    dense = save_model(name, models()[name], root / name)
    path = dense / "config.json"
    config = {**json.loads(path.read_text()), **PUBLISHED.get(name, {})}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}, indent=2))
    return dense


def pairs_of_families(root: Path) -> Iterator[Pair]:
    """Yield every model as a mixture of copies, and as one whose experts differ."""
    for name, model in models().items():
        dense = save(name, root)
        yield pairs.copies(name, dense, root / f"{name}-moe", **model.options)
        if name in PLAIN and model.options.get("shared") != "half":  # halves leave no place for noise
            yield pairs.differing(f"{name}_uneven", dense, root / f"{name}_uneven-moe", **model.options)
    yield pairs.unnormalised("qwen2_unnormalised", root / "qwen2_qwen2_moe-moe", root / "qwen2_unnormalised-moe")
