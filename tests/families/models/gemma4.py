"""Gemma 4: layers of two kinds, each with heads of its own size, and what only some of the published models have."""

from tests.families.models import Model

GEMMA4 = {
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 5e-7, "num_hidden_layers": 4, "head_dim": 8,
    "global_head_dim": 12, "sliding_window": 5, "pad_token_id": 0, "rope_theta": ...,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "vocab_size_per_layer_input": 96,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 2e5},
    },
}  # fmt: skip

SMALL_ONE = {
    **GEMMA4, "hidden_size_per_layer_input": 6, "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
    "final_logit_softcapping": 9.0,
}  # fmt: skip
"""Embeddings for each layer; the upper layers take keys and values from below, and their FFNs are twice as wide."""

LARGE_ONE = {
    **GEMMA4, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
    "tie_word_embeddings": False, "attention_bias": True,
}  # fmt: skip
"""Values that are the keys where attention is full, fewer of them there, biases, and a head of its own."""

MODELS = {
    "gemma4_small": Model("gemma4_text", "gemma4_text", SMALL_ONE, spread=0.3),
    "gemma4_large": Model("gemma4_text", "gemma4_text", LARGE_ONE, {"experts": 3, "top_k": 3}, spread=0.3),
}
