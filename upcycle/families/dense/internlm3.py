"""InternLM3: transformers reads it as a llama with other defaults."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.readers import Readers
from upcycle.families.rules import COMMON, NO_BIAS, NO_WINDOW, ONE_KIND, Carry, Drop, Only, Uniform

INTERNLM3 = replace(
    LLAMA,
    model_type="internlm3",
    known="InternLM3 8B",
    other_classes=("InternLM3ForCausalLM",),
    title="InternLM3",
    readers=Readers(),  # not tried
    fields={
        **COMMON,
        "vocab_size": Carry(128512, "size"),
        "intermediate_size": Carry(10240, "size"),
        "num_hidden_layers": Carry(48, "size"),
        "num_key_value_heads": Carry(2, "size"),
        "head_dim": Carry(128, "size"),
        "max_position_embeddings": Carry(32768, "size"),
        "rms_norm_eps": Carry(1e-5, "number"),
        "pad_token_id": Carry(2),
        # InternLM3Config takes these for attention_bias and mlp_bias
        **dict.fromkeys(("qkv_bias", "bias"), Only((False,), NO_BIAS)),
        **dict.fromkeys(("sliding_window", "use_sliding_window", "max_window_layers"), Drop(NO_WINDOW)),
        "layer_types": Uniform(("full_attention",), ONE_KIND),
        "auto_map": Drop("names code that transformers has had in itself since 5.23"),
    },
)
