"""Qwen3.5, its text model: most layers have linear attention (a gated delta rule), the others attention behind a gate.

Its norms multiply by `1 + weight`, which concerns nobody here: they are carried over.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from upcycle.families.dense.llama import LLAMA
from upcycle.families.derived import one_in
from upcycle.families.parts import Place, When, Where
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, Carry, Drop, Each, Keep

_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_LINEAR = _LAYER + "linear_attn."
_ATTENDS = When("layer_types", ("full_attention",))
_RECURS = When("layer_types", ("linear_attention",))
_BIASED = Where(lambda config, layer: config["attention_bias"] is True and _ATTENDS.holds(config, layer))
_OTHER_HEADS = "heads that guess further tokens; the class leaves them out"


def _product(heads: str, width: str) -> Any:
    def size(config: Mapping[str, Any]) -> int:
        return int(config[heads] * config[width])

    return size


QWEN3_5_TEXT = replace(
    LLAMA,
    model_type="qwen3_5_text",
    model_class="Qwen3_5ForCausalLM",
    title="Qwen3.5",
    readers=Readers(),  # not tried
    parts={
        **{part: place for part, place in LLAMA.parts.items() if not part.startswith("attention.")},
        "attention.q": Place(_ATTENTION + "q_proj.weight", ("2Q", "D"), when=_ATTENDS),  # and its gate, head by head
        "attention.k": Place(_ATTENTION + "k_proj.weight", ("K", "D"), when=_ATTENDS),
        "attention.v": Place(_ATTENTION + "v_proj.weight", ("K", "D"), when=_ATTENDS),
        "attention.o": Place(_ATTENTION + "o_proj.weight", ("D", "Q"), when=_ATTENDS),
        "attention.q.bias": Place(_ATTENTION + "q_proj.bias", ("2Q",), when=_BIASED),
        "attention.k.bias": Place(_ATTENTION + "k_proj.bias", ("K",), when=_BIASED),
        "attention.v.bias": Place(_ATTENTION + "v_proj.bias", ("K",), when=_BIASED),
        "attention.o.bias": Place(_ATTENTION + "o_proj.bias", ("D",), when=_BIASED),
        "norm.q": Place(_ATTENTION + "q_norm.weight", ("H",), when=_ATTENDS),
        "norm.k": Place(_ATTENTION + "k_norm.weight", ("H",), when=_ATTENDS),
        "linear.qkv": Place(_LINEAR + "in_proj_qkv.weight", ("2A+B", "D"), when=_RECURS),
        "linear.z": Place(_LINEAR + "in_proj_z.weight", ("B", "D"), when=_RECURS),
        "linear.b": Place(_LINEAR + "in_proj_b.weight", ("N", "D"), when=_RECURS),
        "linear.a": Place(_LINEAR + "in_proj_a.weight", ("N", "D"), when=_RECURS),
        "linear.conv": Place(_LINEAR + "conv1d.weight", ("2A+B", "1", "C"), when=_RECURS),
        "linear.dt": Place(_LINEAR + "dt_bias", ("N",), when=_RECURS),
        "linear.decay": Place(_LINEAR + "A_log", ("N",), when=_RECURS),
        "linear.norm": Place(_LINEAR + "norm.weight", ("U",), when=_RECURS),
        "linear.out": Place(_LINEAR + "out_proj.weight", ("D", "B"), when=_RECURS),
    },
    fields={
        **COMMON,
        "vocab_size": Carry(248320, "size"),
        "intermediate_size": Carry(12288, "size"),
        "num_attention_heads": Carry(16, "size"),
        "num_key_value_heads": Carry(4, "size"),
        "head_dim": Carry(256, "size"),
        "max_position_embeddings": Carry(32768, "size"),
        "attention_bias": Carry(False, "flag"),
        "linear_conv_kernel_dim": Carry(4, "size"),
        "linear_key_head_dim": Carry(128, "size"),
        "linear_value_head_dim": Carry(128, "size"),
        "linear_num_key_heads": Carry(16, "size"),
        "linear_num_value_heads": Carry(32, "size"),
        "layer_types": Each(
            ("linear_attention", "full_attention"), "expected linear_attention or full_attention of each layer"
        ),
        "full_attention_interval": Keep(),
        "mamba_ssm_dtype": Keep(),  # in which other programs hold the states of linear attention
        **dict.fromkeys(("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"), Drop(_OTHER_HEADS)),
    },
    rope=Rope(theta=10_000.0, rotated=0.25),
    modules=None,
    ignored_tensors=(r"mtp\..*",),
    sizes={
        "A": _product("linear_num_key_heads", "linear_key_head_dim"),
        "B": _product("linear_num_value_heads", "linear_value_head_dim"),
        "C": lambda config: config["linear_conv_kernel_dim"],
        "N": lambda config: config["linear_num_value_heads"],
        "U": lambda config: config["linear_value_head_dim"],
    },
    derived={"layer_types": one_in("full_attention_interval", 4, "full_attention", "linear_attention")},
)
