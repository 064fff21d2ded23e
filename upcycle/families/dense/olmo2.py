"""OLMo 2 and OLMo 3: norms after attention and FFN instead of before, and norms of queries and keys over all heads.

`x = x + norm(attention(x)); x = x + norm(FFN(x))`
"""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.parts import Place
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, NO_WINDOW, ONE_KIND, Carry, Drop, Uniform

_LAYER = "model.layers.{layer}."
_BEFORE = ("norm.attention", "norm.ffn")

OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    model_class="Olmo2ForCausalLM",
    known="OLMo 2",
    title="OLMo 2",
    readers=Readers(),  # not tried
    parts={
        **{part: place for part, place in LLAMA.parts.items() if part not in _BEFORE},
        "norm.q": Place(_LAYER + "self_attn.q_norm.weight", ("Q",)),
        "norm.k": Place(_LAYER + "self_attn.k_norm.weight", ("K",)),
        "norm.after_attention": Place(_LAYER + "post_attention_layernorm.weight", ("D",)),
        "norm.after_ffn": Place(_LAYER + "post_feedforward_layernorm.weight", ("D",)),
    },
    fields={
        **COMMON,
        "vocab_size": Carry(50304, "size"),
        "intermediate_size": Carry(11008, "size"),
        "num_key_value_heads": Carry(None, "size"),
        "max_position_embeddings": Carry(2048, "size"),
        "rms_norm_eps": Carry(1e-5, "number"),
        "bos_token_id": Carry(None),
        "eos_token_id": Carry(50279),
        "pad_token_id": Carry(1),
        "attention_bias": Carry(False, "flag"),
        **dict.fromkeys(("sliding_window", "use_sliding_window", "max_window_layers"), Drop(NO_WINDOW)),
        "layer_types": Uniform(("full_attention",), ONE_KIND),
    },
)

OLMO3 = replace(
    OLMO2,
    model_type="olmo3",
    model_class="Olmo3ForCausalLM",
    known="OLMo 3 without sliding windows",
    title="OLMo 3",
    fields={
        **OLMO2.fields,
        "sliding_window": Drop("no layer is of the kind that has it"),
        "layer_types": Uniform(
            ("full_attention",),
            "the target has no sliding window, which three of four layers of an OLMo 3 have unless all are listed as "
            "full_attention",
            absent=False,
        ),
    },
    rope=Rope(theta=500_000.0, of="full_attention"),
)
