"""LFM2: layers of short convolutions, some of attention; the FFN's width follows from the config in its own way."""

from collections.abc import Mapping
from typing import Any

from upcycle.families.dense.dense import Dense, Modules, Spine
from upcycle.families.derived import layers_of
from upcycle.families.parts import Place, When, Where
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, Carry, Drop, Each

MAX_WIDTH = 2**31 - 1
"""Greatest FFN that is computed with; a config may claim any number."""

_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_CONVOLUTION = _LAYER + "conv."
_FFN = _LAYER + "feed_forward."
_ATTENDS = When("layer_types", ("full_attention",))
_CONVOLVES = When("layer_types", ("conv",))
_BIASED = Where(lambda config, layer: config["conv_bias"] is True and _CONVOLVES.holds(config, layer))


def _layer_types(config: Mapping[str, Any]) -> Any:
    given, attention = config.get("layer_types"), config.get("full_attn_idxs")
    if given is not None or not isinstance(attention, list | None):
        return given
    layers = range(layers_of(config))
    return ["full_attention" if attention is None or layer in attention else "conv" for layer in layers]


def _width(config: Mapping[str, Any]) -> Any:
    """Return the FFN's width (Lfm2MLP): as the config has it, or two thirds of that, times a factor, rounded up."""
    width = config.get("block_ff_dim", config["intermediate_size"])
    factor, multiple = config.get("block_ffn_dim_multiplier", 1.0), config.get("block_multiple_of", 256)
    if type(width) is not int or width > MAX_WIDTH or not config.get("block_auto_adjust_ff_dim", True):
        return width
    if type(factor) not in (int, float) or not 0 < factor < MAX_WIDTH or type(multiple) is not int or multiple < 1:
        return None
    width = int(factor * int(2 * width / 3))
    return multiple * ((width + multiple - 1) // multiple)


_WIDTH = "is in the width of the FFN"

LFM2 = Dense(
    model_type="lfm2",
    model_class="Lfm2ForCausalLM",
    title="LFM2",
    known="LFM2 350M to 2.6B, LFM2.5",
    parts={
        "embeddings": Place("model.embed_tokens.weight", ("V", "D")),
        "attention.q": Place(_ATTENTION + "q_proj.weight", ("Q", "D"), when=_ATTENDS),
        "attention.k": Place(_ATTENTION + "k_proj.weight", ("K", "D"), when=_ATTENDS),
        "attention.v": Place(_ATTENTION + "v_proj.weight", ("K", "D"), when=_ATTENDS),
        "attention.o": Place(_ATTENTION + "out_proj.weight", ("D", "Q"), when=_ATTENDS),
        "norm.q": Place(_ATTENTION + "q_layernorm.weight", ("H",), when=_ATTENDS),
        "norm.k": Place(_ATTENTION + "k_layernorm.weight", ("H",), when=_ATTENDS),
        "conv": Place(_CONVOLUTION + "conv.weight", ("D", "1", "C"), when=_CONVOLVES),
        "conv.in": Place(_CONVOLUTION + "in_proj.weight", ("3D", "D"), when=_CONVOLVES),
        "conv.out": Place(_CONVOLUTION + "out_proj.weight", ("D", "D"), when=_CONVOLVES),
        "conv.bias": Place(_CONVOLUTION + "conv.bias", ("D",), when=_BIASED),
        "conv.in.bias": Place(_CONVOLUTION + "in_proj.bias", ("3D",), when=_BIASED),
        "conv.out.bias": Place(_CONVOLUTION + "out_proj.bias", ("D",), when=_BIASED),
        "norm.attention": Place(_LAYER + "operator_norm.weight", ("D",)),
        "norm.ffn": Place(_LAYER + "ffn_norm.weight", ("D",)),
        "norm.final": Place("model.embedding_norm.weight", ("D",)),
        "head": Place("lm_head.weight", ("V", "D")),
        "gate": Place(_FFN + "w1.weight", ("F", "D")),
        "up": Place(_FFN + "w3.weight", ("F", "D")),
        "down": Place(_FFN + "w2.weight", ("D", "F")),
    },
    fields={
        **{name: rule for name, rule in COMMON.items() if name not in ("hidden_act", "rms_norm_eps")},
        "vocab_size": Carry(65536, "size"),
        "hidden_size": Carry(2560, "size"),
        "intermediate_size": Carry(12288, "size"),
        "num_key_value_heads": Carry(8, "size"),
        "max_position_embeddings": Carry(128_000, "size"),
        "norm_eps": Carry(1e-5, "number"),
        "tie_word_embeddings": Carry(True, "flag"),
        "tie_embedding": Drop("is in tie_word_embeddings"),
        "conv_bias": Carry(False, "flag"),
        "conv_L_cache": Carry(3, "size"),
        "attention_dropout": Drop("the class has none"),
        "layer_types": Each(("full_attention", "conv"), "expected full_attention or conv of each layer"),
        "full_attn_idxs": Drop("is in layer_types"),
        **dict.fromkeys(
            ("conv_dim", "conv_dim_out", "conv_use_xavier_init", "use_pos_enc", "num_heads"),
            Drop("says of published models what the class does in any case"),
        ),
        **dict.fromkeys(("block_ff_dim", "block_multiple_of", "block_ffn_dim_multiplier"), Drop(_WIDTH)),
        "block_auto_adjust_ff_dim": Drop(_WIDTH),
    },
    rope=Rope(theta=1_000_000.0),
    modules=Modules(  # most layers have no attention; the class calls silu by name
        block="feed_forward",
        gate="feed_forward.w1",
        up="feed_forward.w3",
        down="feed_forward.w2",
        act="silu",
    ),
    spine=Spine(norm="model.embedding_norm"),
    sizes={"C": lambda config: config["conv_L_cache"]},
    derived={
        "layer_types": _layer_types,
        "intermediate_size": _width,
        "tie_word_embeddings": lambda config: config.get("tie_embedding", config["tie_word_embeddings"]),
    },
)
