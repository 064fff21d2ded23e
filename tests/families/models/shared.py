"""Mixtures with a shared expert by `--shared`: each form computes what the dense model does."""

from tests.families.models import Model

NARROW = {"shared": "dense", "expert_width": 20, "experts": 3, "top_k": 2}

MODELS = {
    "shared_zero": Model("llama", "granitemoeshared", {}, {"target": "granitemoeshared", "shared": "zero"}),
    "shared_half": Model(
        "mistral", "granitemoeshared", {"sliding_window": 64}, {"target": "granitemoeshared", "shared": "half"}
    ),
    "shared_dense": Model("llama", "granitemoeshared", {}, {"target": "granitemoeshared", **NARROW}),
    "shared_zero_gated": Model("qwen2", "qwen2_moe", {}, {"target": "qwen2_moe", "shared": "zero"}),
    "shared_half_gated": Model(
        "mistral", "qwen2_moe", {"sliding_window": None}, {"target": "qwen2_moe", "shared": "half"}
    ),
    "shared_dense_gated": Model("qwen2", "qwen2_moe", {}, {"target": "qwen2_moe", **NARROW}),
}
