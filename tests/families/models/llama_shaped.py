"""Models that are llamas but for a detail."""

from tests.families.models import Model

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 20000.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}  # fmt: skip

MODELS = {
    "llama": Model("llama", "mixtral", {"head_dim": 10}),
    "mistral": Model("mistral", "mixtral", {"sliding_window": 5, "tie_word_embeddings": True}),
    "llama_bias": Model("llama", "granitemoe", {"attention_bias": True}),
    "qwen3": Model("qwen3", "qwen3_moe", {"head_dim": 12}),
    "qwen3_tied": Model("qwen3", "qwen3_moe", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3_bias": Model("qwen3", "qwen3_moe", {"attention_bias": True}, {"experts": 3, "top_k": 3}),
    "qwen3_some_layers": Model("qwen3", "qwen3_moe", {"num_hidden_layers": 4}, {"layers": "every:2"}),
    "phi3": Model("phi3", "mixtral", {"pad_token_id": 0, "sliding_window": 5}),
    "phi3_longrope": Model(
        "phi3", "mixtral",
        {"pad_token_id": 0, "rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
        greedy=False,  # Phi3ForCausalLM empties its cache where the factors change, MixtralForCausalLM does not
    ),
}  # fmt: skip
