"""The language model of Gemma 4: two kinds of layers, each with heads of its own size, and a norm before and after each
block. Its class is its mixture's, too: `MODEL` is what both have, under the same names.
"""

from collections.abc import Mapping
from typing import Any

from upcycle.families.dense.dense import Dense, Modules
from upcycle.families.derived import layers_of
from upcycle.families.parts import Place, Tensor, When, Where
from upcycle.families.rules import COMMON, Carry, Drop, Each, Keep, Rule

Config = Mapping[str, Any]

_FULL, _SLIDING = "full_attention", "sliding_attention"

LAYER = "model.layers.{layer}."
_ATTENTION = LAYER + "self_attn."


# -- what the class makes of its config (transformers, configuration_gemma4.py) ----------------------------------------


def _layer_types(config: Config) -> Any:
    """Return the kind of each layer: every sixth attends to everything if the config says nothing, the last always."""
    said = config.get("layer_types")
    if said is None:
        said = [_SLIDING if (layer + 1) % 6 else _FULL for layer in range(layers_of(config))]
    return [*said[:-1], _FULL] if isinstance(said, list) and said else said


def is_full(config: Config, layer: int) -> bool:
    """Whether a layer attends to everything."""
    return bool(config["layer_types"][layer] == _FULL)


def shares_keys(config: Config, layer: int) -> bool:
    """Whether a layer takes keys and values from one below."""
    return layer >= int(config["num_hidden_layers"]) - int(config.get("num_kv_shared_layers") or 0)


def _of_heads(config: Config, layer: int, name: str, full: int | None) -> int:
    """Return `head_dim` or `num_key_value_heads` of a layer; `full` is that of layers with full attention, if said."""
    usual: int = full if full and is_full(config, layer) else config[name]
    if "per_layer_config" in config:
        said = {int(number): sizes for number, sizes in (config["per_layer_config"] or {}).items()}
        usual = said.get(layer, {}).get(name, config[name])
    return usual


def head_dim(config: Config, layer: int) -> int:
    """Return the width of a head of a layer."""
    return _of_heads(config, layer, "head_dim", config.get("global_head_dim", 512))


def _key_width(config: Config, layer: int) -> int:
    full = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
    return _of_heads(config, layer, "num_key_value_heads", full) * head_dim(config, layer)


def _neurons(config: Config, layer: int) -> int:
    wide = config.get("use_double_wide_mlp") and shares_keys(config, layer)
    return int(config["intermediate_size"]) * (2 if wide else 1)


def _per_layer_inputs(config: Config) -> int:
    return int(config.get("hidden_size_per_layer_input", 256))


# -- its tensors -------------------------------------------------------------------------------------------------------

_KEYS = Where(lambda config, layer: not shares_keys(config, layer))
_VALUES = Where(
    lambda config, layer: (
        not shares_keys(config, layer) and not (config.get("attention_k_eq_v") and is_full(config, layer))
    )
)
_BIASED = When("attention_bias", (True,))
_KEYS_BIASED = Where(lambda config, layer: _BIASED.holds(config, layer) and _KEYS.holds(config, layer))
_VALUES_BIASED = Where(lambda config, layer: _BIASED.holds(config, layer) and _VALUES.holds(config, layer))
_INPUTS = Where(lambda config, _layer: _per_layer_inputs(config) > 0)

MODEL: tuple[tuple[str, str, str, tuple[str, ...], When | Where | None], ...] = (
    ("embeddings", "embeddings", "model.embed_tokens.weight", ("V", "D"), None),
    ("embeddings", "inputs.embeddings", "model.embed_tokens_per_layer.weight", ("W", "X"), _INPUTS),
    ("embeddings", "inputs.projection", "model.per_layer_model_projection.weight", ("X", "D"), _INPUTS),
    ("norms", "norm.inputs", "model.per_layer_projection_norm.weight", ("P",), _INPUTS),
    ("attention", "attention.q", _ATTENTION + "q_proj.weight", ("Q", "D"), None),
    ("attention", "attention.k", _ATTENTION + "k_proj.weight", ("K", "D"), _KEYS),
    ("attention", "attention.v", _ATTENTION + "v_proj.weight", ("K", "D"), _VALUES),
    ("attention", "attention.o", _ATTENTION + "o_proj.weight", ("D", "Q"), None),
    ("attention", "attention.q.bias", _ATTENTION + "q_proj.bias", ("Q",), _BIASED),
    ("attention", "attention.k.bias", _ATTENTION + "k_proj.bias", ("K",), _KEYS_BIASED),
    ("attention", "attention.v.bias", _ATTENTION + "v_proj.bias", ("K",), _VALUES_BIASED),
    ("attention", "attention.o.bias", _ATTENTION + "o_proj.bias", ("D",), _BIASED),
    ("norms", "norm.q", _ATTENTION + "q_norm.weight", ("H",), None),
    ("norms", "norm.k", _ATTENTION + "k_norm.weight", ("H",), _KEYS),
    ("norms", "norm.attention", LAYER + "input_layernorm.weight", ("D",), None),
    ("norms", "norm.after_attention", LAYER + "post_attention_layernorm.weight", ("D",), None),
    ("norms", "norm.ffn", LAYER + "pre_feedforward_layernorm.weight", ("D",), None),
    ("norms", "norm.after_ffn", LAYER + "post_feedforward_layernorm.weight", ("D",), None),
    ("norms", "norm.after_inputs", LAYER + "post_per_layer_input_norm.weight", ("D",), _INPUTS),
    ("norms", "scalar", LAYER + "layer_scalar", ("1",), None),
    ("ffn", "inputs.gate", LAYER + "per_layer_input_gate.weight", ("P", "D"), _INPUTS),
    ("ffn", "inputs.up", LAYER + "per_layer_projection.weight", ("D", "P"), _INPUTS),
    ("ffn", "gate", LAYER + "mlp.gate_proj.weight", ("F", "D"), None),
    ("ffn", "up", LAYER + "mlp.up_proj.weight", ("F", "D"), None),
    ("ffn", "down", LAYER + "mlp.down_proj.weight", ("D", "F"), None),
    ("norms", "norm.final", "model.norm.weight", ("D",), None),
    ("head", "head", "lm_head.weight", ("V", "D"), None),
)
"""Role, part, tensor, shape and layers of everything in the dense model."""

TENSORS = tuple(Tensor(role, name, shape, (part,), when=when) for role, part, name, shape, when in MODEL)
"""The same, as the mixture has it."""

_FIELDS: dict[str, Rule] = {
    **{name: rule for name, rule in COMMON.items() if name != "hidden_act"},
    "vocab_size": Carry(262144, "size"),
    "hidden_size": Carry(2304, "size"),
    "intermediate_size": Carry(9216, "size"),
    "num_hidden_layers": Carry(30, "size"),
    "num_attention_heads": Carry(8, "size"),
    "num_key_value_heads": Carry(4, "size"),
    "head_dim": Carry(256, "size"),
    "hidden_activation": Carry("gelu_pytorch_tanh", "known activation"),
    "max_position_embeddings": Carry(131072, "size"),
    "sliding_window": Carry(512, "size"),
    "tie_word_embeddings": Carry(True, "flag"),
    "attention_bias": Carry(False, "flag"),
    "attention_k_eq_v": Carry(False, "flag"),
    "num_kv_shared_layers": Carry(0, "count"),
    "use_double_wide_mlp": Carry(False, "flag"),
    "vocab_size_per_layer_input": Carry(262144, "size"),
    "hidden_size_per_layer_input": Carry(256, "count"),
    "final_logit_softcapping": Carry(None),
    "use_bidirectional_attention": Carry(None),
    "layer_types": Each((_FULL, _SLIDING), f"expected {_FULL} or {_SLIDING} of each layer"),
    # one class reads both sides, and makes the same of what is absent
    "per_layer_config": Keep("head size for some layers"),
    "global_head_dim": Keep("size"),
    "num_global_key_value_heads": Keep("size"),
    "rope_parameters": Keep(),
    **dict.fromkeys(
        ("enable_moe_block", "num_experts", "top_k_experts", "moe_intermediate_size"), Drop("the model has no experts")
    ),
}

GEMMA4_TEXT = Dense(
    model_type="gemma4_text",
    model_class="Gemma4ForCausalLM",
    title="Gemma 4",
    known="Gemma 4 text models",
    parts={part: Place(name, shape, when=when) for _, part, name, shape, when in MODEL},
    fields=_FIELDS,
    rope=None,
    modules=Modules(  # attention is not alike in all layers
        block="mlp", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj"
    ),
    # of layers that take them from below; the class passes them over
    ignored_tensors=(r"model\.layers\.\d+\.self_attn\.[kv]_(proj|norm)\.\w+",),
    sizes={
        "W": lambda config: config["vocab_size_per_layer_input"],
        "P": _per_layer_inputs,
        "X": lambda config: _per_layer_inputs(config) * int(config["num_hidden_layers"]),
    },
    layer_sizes={
        "H": head_dim,
        "Q": lambda config, layer: int(config["num_attention_heads"]) * head_dim(config, layer),
        "K": _key_width,
        "F": _neurons,
    },
    derived={"layer_types": _layer_types},
)
