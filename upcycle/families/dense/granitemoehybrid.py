"""Granite 4 without experts: layers of Mamba 2 or of attention; its FFN is what its mixtures call the shared expert."""

from collections.abc import Mapping
from typing import Any

from upcycle.families.dense.dense import Dense, Modules
from upcycle.families.derived import layers_of
from upcycle.families.parts import Place, When, Where
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, Carry, Drop, Each, Keep, Only

_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_MAMBA = _LAYER + "mamba."
_GATE_UP = _LAYER + "shared_mlp.input_linear.weight"

# transformers 5 writes the longer words, and reads both
_ATTENDS = When("layer_types", ("full_attention", "attention"))
_SCANS = When("layer_types", ("linear_attention", "mamba"))


def _scans_with(field: str) -> Where:
    return Where(lambda config, layer: config[field] is True and _SCANS.holds(config, layer))


_BIASED = Where(lambda config, layer: config["attention_bias"] is True and _ATTENDS.holds(config, layer))
_CONVOLVED, _PROJECTED = _scans_with("mamba_conv_bias"), _scans_with("mamba_proj_bias")


def _layer_types(config: Mapping[str, Any]) -> Any:
    """Return the class's `layer_types`, in older configs `layers_block_type`; else Mamba throughout."""
    given = config.get("layer_types") or config.get("layers_block_type")
    return given or ["linear_attention"] * layers_of(config)


def _inner(config: Mapping[str, Any]) -> int:
    return int(config["mamba_expand"] * config["hidden_size"])


def _convolved(config: Mapping[str, Any]) -> int:
    """Return the channels of the convolution: the inner ones, and B and C of each group."""
    return _inner(config) + 2 * int(config["mamba_n_groups"] * config["mamba_d_state"])


_MULTIPLIERS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")

GRANITEMOEHYBRID_DENSE = Dense(
    model_type="granitemoehybrid",
    model_class="GraniteMoeHybridForCausalLM",
    title="Granite 4",
    known="Granite 4.0 Micro, H-Micro, 350M and 1B",
    parts={
        "embeddings": Place("model.embed_tokens.weight", ("V", "D")),
        "attention.q": Place(_ATTENTION + "q_proj.weight", ("Q", "D"), when=_ATTENDS),
        "attention.k": Place(_ATTENTION + "k_proj.weight", ("K", "D"), when=_ATTENDS),
        "attention.v": Place(_ATTENTION + "v_proj.weight", ("K", "D"), when=_ATTENDS),
        "attention.o": Place(_ATTENTION + "o_proj.weight", ("D", "Q"), when=_ATTENDS),
        "attention.q.bias": Place(_ATTENTION + "q_proj.bias", ("Q",), when=_BIASED),
        "attention.k.bias": Place(_ATTENTION + "k_proj.bias", ("K",), when=_BIASED),
        "attention.v.bias": Place(_ATTENTION + "v_proj.bias", ("K",), when=_BIASED),
        "attention.o.bias": Place(_ATTENTION + "o_proj.bias", ("D",), when=_BIASED),
        "mamba.a": Place(_MAMBA + "A_log", ("N",), when=_SCANS),
        "mamba.d": Place(_MAMBA + "D", ("N",), when=_SCANS),
        "mamba.dt": Place(_MAMBA + "dt_bias", ("N",), when=_SCANS),
        "mamba.convolution": Place(_MAMBA + "conv1d.weight", ("C", "1", "W"), when=_SCANS),
        "mamba.convolution.bias": Place(_MAMBA + "conv1d.bias", ("C",), when=_CONVOLVED),
        "mamba.in": Place(_MAMBA + "in_proj.weight", ("I+C+N", "D"), when=_SCANS),
        "mamba.in.bias": Place(_MAMBA + "in_proj.bias", ("I+C+N",), when=_PROJECTED),
        "mamba.out": Place(_MAMBA + "out_proj.weight", ("D", "I"), when=_SCANS),
        "mamba.out.bias": Place(_MAMBA + "out_proj.bias", ("D",), when=_PROJECTED),
        "norm.mamba": Place(_MAMBA + "norm.weight", ("I",), when=_SCANS),
        "norm.attention": Place(_LAYER + "input_layernorm.weight", ("D",)),
        "norm.ffn": Place(_LAYER + "post_attention_layernorm.weight", ("D",)),
        "norm.final": Place("model.norm.weight", ("D",)),
        "head": Place("lm_head.weight", ("V", "D")),
        "gate": Place(_GATE_UP, ("2F", "D"), ("0", "F")),
        "up": Place(_GATE_UP, ("2F", "D"), ("F", "2F")),
        "down": Place(_LAYER + "shared_mlp.output_linear.weight", ("D", "F")),
    },
    fields={
        **COMMON,
        "num_key_value_heads": Carry(None, "size"),
        "max_position_embeddings": Carry(2048, "size"),
        "attention_bias": Carry(False, "flag"),
        **dict.fromkeys(_MULTIPLIERS, Carry(1.0, "number")),
        "intermediate_size": Drop("the width of experts, of which there are none"),
        "shared_intermediate_size": Carry(1024, "size", to="intermediate_size"),
        "num_local_experts": Only((0,), "the model is a mixture of experts already"),
        **dict.fromkeys(
            ("num_experts_per_tok", "output_router_logits", "router_aux_loss_coef", "init_method"),
            Drop("of experts, of which there are none, or of training"),
        ),
        "normalization_function": Only(("rmsnorm",), "the class knows no other norm"),
        "position_embedding_type": Carry(None),
        "layer_types": Each(
            (*_ATTENDS.values, *_SCANS.values), "expected linear_attention or full_attention of each layer"
        ),
        "layers_block_type": Drop("is in layer_types"),
        "mamba_n_heads": Carry(128, "size"),
        "mamba_n_groups": Carry(1, "size"),
        "mamba_d_state": Carry(256, "size"),
        "mamba_d_conv": Carry(4, "size"),
        "mamba_expand": Carry(2, "size"),
        "mamba_chunk_size": Carry(256, "size"),
        "mamba_conv_bias": Carry(True, "flag"),
        "mamba_proj_bias": Carry(False, "flag"),
        **dict.fromkeys(("mamba_d_head", "time_step_limit"), Keep()),  # the class makes the same of them on both sides
    },
    rope=Rope(theta=10_000.0),
    modules=Modules(  # most layers have no attention
        block="shared_mlp",
        gate_up="shared_mlp.input_linear",
        down="shared_mlp.output_linear",
        act="activation",
    ),
    sizes={
        "N": lambda config: int(config["mamba_n_heads"]),
        "W": lambda config: int(config["mamba_d_conv"]),
        "I": _inner,
        "C": _convolved,
    },
    derived={"layer_types": _layer_types},
)
