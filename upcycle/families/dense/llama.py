"""Llama, and everything that is published under its name: SmolLM, TinyLlama, Yi, Vicuna, DeepSeek's distillations."""

from upcycle.families.dense.dense import Dense, Modules
from upcycle.families.parts import Place, When
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, NO_WINDOW, ONE_KIND, Carry, Drop, Uniform

_LAYER = "model.layers.{layer}."
_BIASED = When("attention_bias", (True,))

LLAMA = Dense(
    model_type="llama",
    model_class="LlamaForCausalLM",
    known="Llama 2 and 3, SmolLM2, TinyLlama, Yi, DeepSeek-R1-Distill-Llama",
    title="Llama",
    parts={
        "embeddings": Place("model.embed_tokens.weight", ("V", "D")),
        "attention.q": Place(_LAYER + "self_attn.q_proj.weight", ("Q", "D")),
        "attention.k": Place(_LAYER + "self_attn.k_proj.weight", ("K", "D")),
        "attention.v": Place(_LAYER + "self_attn.v_proj.weight", ("K", "D")),
        "attention.o": Place(_LAYER + "self_attn.o_proj.weight", ("D", "Q")),
        "attention.q.bias": Place(_LAYER + "self_attn.q_proj.bias", ("Q",), when=_BIASED),
        "attention.k.bias": Place(_LAYER + "self_attn.k_proj.bias", ("K",), when=_BIASED),
        "attention.v.bias": Place(_LAYER + "self_attn.v_proj.bias", ("K",), when=_BIASED),
        "attention.o.bias": Place(_LAYER + "self_attn.o_proj.bias", ("D",), when=_BIASED),
        "norm.attention": Place(_LAYER + "input_layernorm.weight", ("D",)),
        "norm.ffn": Place(_LAYER + "post_attention_layernorm.weight", ("D",)),
        "norm.final": Place("model.norm.weight", ("D",)),
        "head": Place("lm_head.weight", ("V", "D")),
        "gate": Place(_LAYER + "mlp.gate_proj.weight", ("F", "D")),
        "up": Place(_LAYER + "mlp.up_proj.weight", ("F", "D")),
        "down": Place(_LAYER + "mlp.down_proj.weight", ("D", "F")),
    },
    fields={
        **COMMON,
        "intermediate_size": Carry(11008, "size"),
        "num_key_value_heads": Carry(None, "size"),
        "max_position_embeddings": Carry(2048, "size"),
        # LlamaForCausalLM attends to everything, whatever these say; left in, the target would obey them
        **dict.fromkeys(("sliding_window", "use_sliding_window", "max_window_layers"), Drop(NO_WINDOW)),
        "layer_types": Uniform(("full_attention",), ONE_KIND),
    },
    rope=Rope(theta=10_000.0),
    modules=Modules(
        block="mlp",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    ),
    ignored_tensors=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    readers=Readers("run", ("default", "linear", "yarn", "llama3")),
)
