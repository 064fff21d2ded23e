"""Qwen2 and Qwen2.5, QwQ, DeepSeek's distillations into them: a llama with biases on queries, keys and values."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from upcycle.families.dense.llama import LLAMA
from upcycle.families.readers import Readers
from upcycle.families.rules import COMMON, Carry, Drop, Only, Uniform

_BIASES = ("attention.q.bias", "attention.k.bias", "attention.v.bias")
_WINDOW = "the target has no sliding window in some of its layers"


def _no_layer_has_a_window(config: Mapping[str, Any]) -> bool:
    """Whether Qwen2Config (5.23) gives no layer a window though `use_sliding_window` is true, or asks `layer_types`."""
    first, layers = config.get("max_window_layers", 28), config.get("num_hidden_layers", 32)
    beyond = type(first) is int and type(layers) is int and first >= layers
    return beyond or config.get("sliding_window", 4096) is None or config.get("layer_types") is not None


QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    model_class="Qwen2ForCausalLM",
    title="Qwen2",
    readers=Readers(),  # not tried
    parts={
        **{name: place for name, place in LLAMA.parts.items() if name != "attention.o.bias"},
        **{name: replace(LLAMA.parts[name], when=None) for name in _BIASES},
    },
    fields={
        **COMMON,
        "vocab_size": Carry(151936, "size"),
        "intermediate_size": Carry(22016, "size"),
        "num_key_value_heads": Carry(32, "size"),
        "max_position_embeddings": Carry(32768, "size"),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), Carry(None)),
        **dict.fromkeys(("attention_bias", "qkv_bias"), Drop("the class has its biases whatever these say")),
        "use_sliding_window": Only((False,), _WINDOW, unless=_no_layer_has_a_window),
        **dict.fromkeys(("sliding_window", "max_window_layers"), Drop("no layer has a window")),
        "layer_types": Uniform(("full_attention",), _WINDOW),
    },
    ignored_tensors=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)
