"""Random dense models, small enough to look at, and drawn so that a wrong field shows: no setting is a default."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 20000.0, "factor": 4.0, "original_max_position_embeddings": 16}

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-5,
    "rope_theta": 30000.0,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_odd_head": ("llama", {"head_dim": 10}),
    "llama_llama3_rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama_yarn": ("llama", {"rope_parameters": YARN_ROPE}),
    "llama_linear_rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 7000.0, "factor": 3.0}}),
    "llama_dynamic_rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 7e3, "factor": 3.0}}),
    "llama_gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama_no_gqa": ("llama", {"num_key_value_heads": None}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": 5}),
    "mistral_tied": ("mistral", {"tie_word_embeddings": True, "sliding_window": 7}),
    "mistral_odd_head": ("mistral", {"head_dim": 6, "sliding_window": None}),
}
"""Variant -> (family, config fields that differ from SMALL)."""

CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM)}


def save_dense(variant: str, directory: Path, *, dtype: torch.dtype = torch.bfloat16, **save: Any) -> Path:
    """Save the random model of `variant`; weights are wide enough that its logits vary by several units."""
    family, fields = VARIANTS[variant]
    config_class, model_class = CLASSES[family]
    settings = {**SMALL, **fields}
    if "rope_parameters" in fields:
        del settings["rope_theta"]
    torch.manual_seed(sum(variant.encode()))
    model = model_class(config_class(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.15)
    model.to(dtype).save_pretrained(directory, **save)
    return directory
