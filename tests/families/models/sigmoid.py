"""Models that become mixtures with sigmoid routers."""

import torch

from tests.families.models import Model
from tests.models import LLAMA3_ROPE, YARN_ROPE

PARTLY = {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.75}
PARTLY_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 20000.0, "partial_rotary_factor": 0.75, "short_factor": [1.0, 1.1, 1.2],
    "long_factor": [2.0, 3.0, 4.0],
}  # fmt: skip
LATENT = {
    "q_lora_rank": 24, "kv_lora_rank": 20, "qk_rope_head_dim": 6, "qk_nope_head_dim": 10, "v_head_dim": 14,
    "num_key_value_heads": 4,
}  # fmt: skip
YARN_MSCALE = {**YARN_ROPE, "mscale": 0.8, "mscale_all_dim": 0.6}

THREE = {"experts": 3, "top_k": 3}
LAST = {"layers": "last:2"}


MODELS = {
    "llama_glm4": Model(
        "llama", "glm4_moe", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True, "head_dim": 10},
        {"target": "glm4_moe", **THREE},
    ),
    "llama_glm4_layers": Model(
        "llama", "glm4_moe", {"num_hidden_layers": 3, "hidden_act": "gelu_pytorch_tanh"},
        {"target": "glm4_moe", **LAST},
    ),
    "llama_solar": Model("llama", "solar_open", {"rope_parameters": YARN_ROPE}, {"target": "solar_open"}),
    "llama_solar_tied": Model(
        "llama", "solar_open", {"tie_word_embeddings": True, "head_dim": 6}, {"target": "solar_open", **THREE},
    ),
    "qwen2_glm4": Model("qwen2", "glm4_moe", {"rope_parameters": YARN_ROPE}, {"target": "glm4_moe"}),
    "qwen2_glm4_tied": Model(
        "qwen2", "glm4_moe", {"tie_word_embeddings": True, "num_hidden_layers": 3},
        {"target": "glm4_moe", **THREE, **LAST},
    ),
    "qwen3_glm4": Model("qwen3", "glm4_moe", {"head_dim": 12, "rope_parameters": LLAMA3_ROPE}, {"target": "glm4_moe"}),
    "qwen3_dots1": Model(
        "qwen3", "dots1", {"head_dim": 12, "attention_bias": True, "num_hidden_layers": 3},
        {"target": "dots1", **THREE, **LAST},
    ),
    "qwen3_window": Model(
        "qwen3", "dots1", {"head_dim": 8, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3_hy": Model(
        "qwen3", "hy_v3", {"head_dim": 12, "attention_bias": True, "tie_word_embeddings": True}, {"target": "hy_v3"},
    ),
    "qwen3_hy_layers": Model(
        "qwen3", "hy_v3", {"head_dim": 8, "num_hidden_layers": 3},
        {"target": "hy_v3", **THREE, "layers": "0,2"},
    ),
    "qwen3_hy_bf16": Model(
        "qwen3", "hy_v3", {"head_dim": 8}, {"target": "hy_v3"}, dtype=torch.bfloat16,
    ),
    "phi3_partly": Model(
        "phi3", "glm4_moe",
        {"pad_token_id": 0, "rope_parameters": PARTLY, "sliding_window": 64, "tie_word_embeddings": True},
    ),
    "phi3_partly_longrope": Model(
        "phi3", "glm4_moe",
        {"pad_token_id": 0, "rope_parameters": PARTLY_LONGROPE, "original_max_position_embeddings": 16},
        greedy=False,  # Phi3ForCausalLM empties its cache where the factors change, Glm4MoeForCausalLM does not
    ),
    "youtu": Model("youtu", "deepseek_v3", {**LATENT, "rope_parameters": YARN_MSCALE}),
    "youtu_untied": Model(
        "youtu", "deepseek_v3",
        {**LATENT, "tie_word_embeddings": False, "attention_bias": True, "rope_interleave": False,
         "num_hidden_layers": 3},
        {**THREE, **LAST},
    ),
}  # fmt: skip
