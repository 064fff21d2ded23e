"""Models of other makes that a mixture expresses by a detail of its own: a rope per layer, a gate that is not one."""

import torch

from tests.families.models import Model
from tests.models import LLAMA3_ROPE, YARN_ROPE

THREE = {"experts": 3, "top_k": 3}
COHERE = {"num_hidden_layers": 3, "logit_scale": 0.7, "layer_norm_eps": 3e-3, "rms_norm_eps": ..., "bos_token_id": 1}
SMOL = {"num_hidden_layers": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
AFM = {"bos_token_id": 1, "eos_token_id": 2}
GLM = {"pad_token_id": 0, "eos_token_id": 2}
GRANITE = {
    "num_hidden_layers": 3, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 40,
    "embedding_multiplier": 3.5, "residual_multiplier": 0.7, "logits_scaling": 1.6, "attention_multiplier": 0.21,
    "mamba_n_heads": 4, "mamba_d_state": 6, "mamba_n_groups": 2, "mamba_chunk_size": 8, "mamba_d_conv": 3,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 7000.0, "factor": 3.0}

MODELS = {
    "arcee": Model("arcee", "mixtral", {**AFM, "head_dim": 10, "rope_parameters": YARN_ROPE}),
    "arcee_tied": Model("arcee", "mixtral", {**AFM, "tie_word_embeddings": True}, THREE, dtype=torch.bfloat16),
    "arcee_bias": Model(
        "arcee", "granitemoe", {**AFM, "attention_bias": True, "head_dim": 6, "rope_parameters": LLAMA3_ROPE}
    ),
    "cohere": Model(
        "cohere", "cohere2_moe",
        {**COHERE, "eos_token_id": 2, "attention_bias": True, "head_dim": 6, "rope_parameters": LINEAR_ROPE}, THREE,
    ),
    "cohere_some_layers": Model(
        "cohere", "cohere2_moe",
        {**COHERE, "eos_token_id": 2, "tie_word_embeddings": False, "hidden_act": "gelu", "num_key_value_heads": 4},
        {"layers": "0,2"},
    ),
    "glm": Model(
        "glm", "glm4_moe",
        {**GLM, "head_dim": 16, "rope_parameters": {**YARN_ROPE, "partial_rotary_factor": 0.25}}, THREE,
    ),
    "glm_some_layers": Model(
        "glm", "glm4_moe", {**GLM, "attention_bias": False, "head_dim": 8, "num_hidden_layers": 3}, {"layers": "last:2"}
    ),
    "glm_bf16": Model(
        "glm", "glm4_moe",
        {**GLM, "head_dim": 12, "rope_parameters": {**LINEAR_ROPE, "partial_rotary_factor": 1.0},
         "tie_word_embeddings": True}, dtype=torch.bfloat16,
    ),
    "granite4": Model(
        "granitemoehybrid", "granitemoehybrid",
        {**GRANITE, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
         "position_embedding_type": "rope", "rope_parameters": YARN_ROPE, "mamba_proj_bias": True}, THREE,
    ),
    "granite4_tied": Model(
        "granitemoehybrid", "granitemoehybrid",
        {**GRANITE, "layer_types": ["full_attention", "linear_attention", "full_attention"], "attention_bias": True,
         "mamba_conv_bias": False, "tie_word_embeddings": True}, dtype=torch.bfloat16,
    ),
    "helium": Model("helium", "mixtral", {"head_dim": 8, "rope_parameters": LLAMA3_ROPE}, THREE),
    "helium_tied": Model("helium", "mixtral", {"head_dim": 8, "tie_word_embeddings": True}, dtype=torch.bfloat16),
    "helium_bias": Model("helium", "granitemoe", {"head_dim": 8, "attention_bias": True}),
    "smollm3": Model("smollm3", "granitemoe_swa", {**SMOL, "head_dim": 10, "rope_parameters": YARN_ROPE}),
    "smollm3_windows": Model(
        "smollm3", "granitemoe_swa",
        {**SMOL, "no_rope_layers": [0, 1, 1, 0], "use_sliding_window": True, "sliding_window": 5,
         "attention_bias": True, "tie_word_embeddings": False}, THREE,
    ),
    "smollm3_bf16": Model(
        "smollm3", "granitemoe_swa",
        {**SMOL, "no_rope_layer_interval": 2, "rope_parameters": LINEAR_ROPE, "sliding_window": 3,
         "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
        dtype=torch.bfloat16,
    ),
}  # fmt: skip
