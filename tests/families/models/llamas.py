"""Models that are llamas but for their norms, their embeddings or their window."""

import torch

from tests.families.models import Model
from tests.models import LLAMA3_ROPE, YARN_ROPE

MODELS = {
    "ministral_full": Model(  # the window is not used, and must not come in
        "ministral", "mixtral", {"sliding_window": 5, "layer_types": ["full_attention"] * 2, "head_dim": 12}
    ),
    "ministral_window": Model(
        "ministral", "mixtral", {"sliding_window": 5, "head_dim": 6, "tie_word_embeddings": True},
        {"experts": 3, "top_k": 3}
    ),
    "internlm3": Model(
        "internlm3", "mixtral",
        {"head_dim": 12, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 7e3, "factor": 3.0}},
    ),
    "iquestcoder": Model(
        "iquestcoder", "mixtral", {"head_dim": 10, "rope_parameters": YARN_ROPE, "tie_word_embeddings": True}
    ),
    "gemma": Model("gemma", "mixtral", {"head_dim": 12}),
    "gemma_untied": Model(
        "gemma", "mixtral", {"head_dim": 8, "tie_word_embeddings": False, "rope_parameters": LLAMA3_ROPE},
        {"experts": 3, "top_k": 3},
    ),
    "gemma_bf16": Model(  # 1 + w and sqrt(D) * w are rounded to 8 bits, which float32 shows
        "gemma", "mixtral", {"head_dim": 8}, dtype=torch.bfloat16, exact=False, tolerance=3e-2, greedy=False
    ),
    "gemma_bf16_wide": Model("gemma", "mixtral", {"head_dim": 8}, {"dtype": "f32"}, dtype=torch.bfloat16),
    "olmo2": Model("olmo2", "flex_olmo", {"attention_bias": True, "head_dim": 12, "rope_parameters": YARN_ROPE}),
    "olmo2_tied": Model("olmo2", "flex_olmo", {"tie_word_embeddings": True}, {"experts": 3, "top_k": 3}),
    "olmo3": Model(
        "olmo3", "flex_olmo",
        {
            "layer_types": ["full_attention"] * 2, "sliding_window": 5, "attention_bias": True,
            "rope_parameters": {"full_attention": YARN_ROPE, "sliding_attention": {"rope_type": "default"}},
        },
    ),
    "ernie4_5": Model(
        "ernie4_5", "ernie4_5_moe",
        {"head_dim": 12, "tie_word_embeddings": False, "rope_parameters": YARN_ROPE}, {"experts": 3, "top_k": 3},
    ),
    "ernie4_5_some_layers": Model(
        "ernie4_5", "ernie4_5_moe", {"head_dim": 8, "num_hidden_layers": 4}, {"layers": "every:2"}
    ),
    "ernie4_5_range": Model("ernie4_5", "ernie4_5_moe", {"head_dim": 8, "num_hidden_layers": 4}, {"layers": "1-2"}),
    "helium_ernie": Model(
        "helium", "ernie4_5_moe",
        {"head_dim": 8, "rope_parameters": {"rope_type": "linear", "rope_theta": 7e3, "factor": 3.0}},
        {"target": "ernie4_5_moe", "layers": "last:1"},
    ),
}  # fmt: skip
