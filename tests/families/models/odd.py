"""Models whose layers differ from one another, or from a llama in more than a detail."""

import torch

from tests.families.models import Model

YARN = {"rope_type": "yarn", "rope_theta": 20000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip

COHERE = {"num_hidden_layers": 3, "logit_scale": 0.7, "layer_norm_eps": 3e-3, "rms_norm_eps": ..., "sliding_window": 5}
LFM = {"num_hidden_layers": 3, "norm_eps": 3e-3, "rms_norm_eps": ..., "conv_L_cache": 4, "block_multiple_of": 8}
LINEAR = {
    "num_hidden_layers": 3, "linear_key_head_dim": 6, "linear_value_head_dim": 10, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_conv_kernel_dim": 3, "head_dim": 12, "rms_norm_eps": 3e-3,
}  # fmt: skip

MODELS = {
    "cohere2": Model("cohere2", "cohere2_moe", {
        **COHERE, "attention_bias": True, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    }, {"experts": 3, "top_k": 3}),
    "cohere2_some_layers": Model("cohere2", "cohere2_moe", {
        **COHERE, "num_hidden_layers": 5, "tie_word_embeddings": False, "sliding_window_pattern": 3,
        "hidden_act": "gelu", "rope_parameters": YARN, "head_dim": 6,
    }, {"layers": "1,3"}),
    "hunyuan": Model("hunyuan_v1_dense", "hunyuan_v1_moe", {
        "head_dim": 12, "attention_bias": True, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 3e4, "factor": 1.0, "alpha": 7.0},
    }),
    "hunyuan_relu": Model("hunyuan_v1_dense", "hunyuan_v1_moe", {
        "head_dim": 8, "hidden_act": "relu", "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 3e4, "factor": 3.0},
    }, {"experts": 3, "top_k": 3}, dtype=torch.float16),
    "lfm2": Model("lfm2", "lfm2_moe", {
        **LFM, "conv_bias": True, "layer_types": ["conv", "full_attention", "conv"],
        "block_ffn_dim_multiplier": 1.6, "rope_parameters": LLAMA3,
    }),
    "lfm2_some_layers": Model("lfm2", "lfm2_moe", {
        **LFM, "num_hidden_layers": 4, "full_attn_idxs": [0, 2], "block_auto_adjust_ff_dim": False,
        "tie_word_embeddings": False,
    }, {"layers": "last:3", "experts": 3, "top_k": 3}, dtype=torch.bfloat16),
    "qwen3_5": Model("qwen3_5_text", "qwen3_5_moe_text", {
        **LINEAR, "layer_types": ["full_attention", "linear_attention", "full_attention"], "attention_bias": True,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 1],
            "mrope_interleaved": True,
        },
    }),
    "qwen3_5_tied": Model("qwen3_5_text", "qwen3_5_moe_text", {
        **LINEAR, "num_hidden_layers": 4, "full_attention_interval": 3, "tie_word_embeddings": True,
        "hidden_act": "gelu",
    }, {"experts": 3, "top_k": 3}, dtype=torch.bfloat16),
}  # fmt: skip
