"""Models with multipliers, attention biases or sinks, and what becomes of them: Granite's mixtures and Qwen2-MoE."""

import torch

from tests.families.models import Model
from tests.models import LLAMA3_ROPE, YARN_ROPE

MULTIPLIERS = {
    "embedding_multiplier": 3.5, "residual_multiplier": 0.7, "logits_scaling": 1.6, "attention_multiplier": 0.21,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 7000.0, "factor": 3.0}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 7000.0, "factor": 3.0}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 20000.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 16, "factor": 4.0,
}  # fmt: skip
SHARED, QWEN2_MOE = {"target": "granitemoeshared"}, {"target": "qwen2_moe"}
THREE = {"experts": 3, "top_k": 3}
SINKS = {**MULTIPLIERS, "sliding_window": 5, "bos_token_id": 1, "eos_token_id": 2}

MODELS = {
    "granite": Model("granite", "granitemoe", {**MULTIPLIERS, "head_dim": 10, "rope_parameters": YARN_ROPE}),
    "granite_bias_tied": Model(
        "granite", "granitemoe", {**MULTIPLIERS, "attention_bias": True, "tie_word_embeddings": True}, THREE
    ),
    "granite_shared": Model(
        "granite", "granitemoeshared",
        {**MULTIPLIERS, "attention_bias": True, "hidden_act": "gelu", "rope_parameters": LLAMA3_ROPE}, SHARED,
    ),
    # bfloat16 on disk, float32 in the comparison: the same figures
    "granite_bf16": Model("granite", "granitemoe", {**MULTIPLIERS, "rope_parameters": LONGROPE}, dtype=torch.bfloat16),
    "granite_swa": Model(
        "granite_swa", "granitemoe_swa",
        {**SINKS, "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "layer_rope_theta": [500.0, 0, 9000.0], "attention_bias": True, "head_dim": 10,
         "rope_parameters": LINEAR_ROPE},
        THREE,
    ),
    "granite_swa_untied": Model("granite_swa", "granitemoe_swa", {**SINKS, "tie_word_embeddings": False}),
    "qwen2": Model("qwen2", "granitemoe", {"head_dim": 10, "rope_parameters": YARN_ROPE}, THREE),
    "qwen2_tied": Model(
        "qwen2", "granitemoe",
        # no layer has the window: it begins after the last
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
        dtype=torch.bfloat16,
    ),
    "qwen2_shared": Model("qwen2", "granitemoeshared", {"rope_parameters": DYNAMIC_ROPE, "hidden_act": "gelu"}, SHARED),
    "qwen2_qwen2_moe": Model("qwen2", "qwen2_moe", {"head_dim": 6, "tie_word_embeddings": True}, QWEN2_MOE | THREE),
    "qwen2_some_layers": Model(
        "qwen2", "qwen2_moe", {"num_hidden_layers": 3, "rope_parameters": LONGROPE}, {**QWEN2_MOE, "layers": "0,2"}
    ),
    "seed_oss": Model("seed_oss", "granitemoe", {"head_dim": 12, "rope_parameters": LLAMA3_ROPE}, THREE),
    "seed_oss_out_bias": Model(
        "seed_oss", "granitemoe", {"head_dim": 8, "attention_out_bias": True, "tie_word_embeddings": True}
    ),
    "seed_oss_only_out_bias": Model(
        "seed_oss", "granitemoeshared", {"head_dim": 6, "attention_bias": False, "attention_out_bias": True}, SHARED
    ),
    "seed_oss_qwen2_moe": Model(
        "seed_oss", "qwen2_moe", {"head_dim": 8, "num_hidden_layers": 3}, {**QWEN2_MOE, "layers": "last:1"}
    ),
    "seed_oss_no_bias": Model("seed_oss", "qwen2_moe", {"head_dim": 10, "attention_bias": False}, QWEN2_MOE),
    "llama_bias_shared": Model(
        "llama", "granitemoeshared",
        {"attention_bias": True, "head_dim": 10, "tie_word_embeddings": True, "rope_parameters": LINEAR_ROPE}, SHARED,
    ),
    "llama_bias_llama3": Model(
        "llama", "granitemoe", {"attention_bias": True, "head_dim": 6, "rope_parameters": LLAMA3_ROPE}, THREE
    ),
    "llama_qwen2_moe": Model("llama", "qwen2_moe", {"num_hidden_layers": 3}, {**QWEN2_MOE, "layers": "every:2"}),
}  # fmt: skip
