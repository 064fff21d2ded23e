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
    draw_weights(model_class(config_class(**settings))).to(dtype).save_pretrained(directory, **save)
    return directory


def draw_weights(model: Any, spread: float = 0.15) -> Any:
    """Draw every weight of a model, wide enough that its logits vary by several units; return the model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=spread)
    return model


MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
"""mistralai/Mistral-7B-v0.1's config.json."""

SMOLLM2_135M: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
    "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
    "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_theta": 100000, "tie_word_embeddings": True,
    "vocab_size": 49152,
}  # fmt: skip
"""Of HuggingFaceTB/SmolLM2-135M, what decides its shapes."""


def save_header(config: dict[str, Any], directory: Path, *, residue: int | None = None) -> Path:
    """Save a bfloat16 checkpoint whose data is a hole in a sparse file: shapes of any size at no cost."""
    import json

    from upcycle.checkpoint.header import build_header, tensor_bytes

    tensors = [(name, "BF16", shape) for name, shape in _shapes(config)]
    header = build_header(tensors, residue=residue)
    (directory / "config.json").write_text(json.dumps(config))
    with (directory / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(tensor_bytes(dtype, shape) for _, dtype, shape in tensors))
    return directory


def _shapes(config: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order in which transformers saves them."""
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    K = D // config["num_attention_heads"] * config["num_key_value_heads"]
    layer: list[tuple[str, tuple[int, ...]]] = [
        ("input_layernorm", (D,)), ("mlp.down_proj", (D, F)), ("mlp.gate_proj", (F, D)), ("mlp.up_proj", (F, D)),
        ("post_attention_layernorm", (D,)), ("self_attn.k_proj", (K, D)), ("self_attn.o_proj", (D, D)),
        ("self_attn.q_proj", (D, D)), ("self_attn.v_proj", (K, D)),
    ]  # fmt: skip
    shapes: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (V, D))]
    for number in range(config["num_hidden_layers"]):
        shapes += [(f"model.layers.{number}.{name}.weight", shape) for name, shape in layer]
    shapes.append(("model.norm.weight", (D,)))
    return shapes if config["tie_word_embeddings"] else [*shapes, ("lm_head.weight", (V, D))]
