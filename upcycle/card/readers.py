"""Says which other programs read a model and what they get wrong, by its config; knows how configs name things."""

import re
from collections.abc import Mapping
from typing import Any

from upcycle.card.values import texts, whole
from upcycle.families.pairs import DENSE, TARGETS
from upcycle.families.readers import Readers
from upcycle.families.wrappers import TEXT, WRAPPERS

FIELDS: Mapping[str, tuple[str, ...]] = {
    "experts": ("num_local_experts", "num_experts"), "top_k": ("num_experts_per_tok", "top_k_experts", "top_k"),
    "layers": ("num_hidden_layers",), "context": ("max_position_embeddings",),
    "data type": ("dtype", "torch_dtype"), "rank": ("rank", "r"),
}  # fmt: skip
"""A fact -> the config fields that may hold it; the first that says anything counts."""

_ROUTED = {row.name for target in TARGETS.values() for row in target.tensors if row.role == "experts"}
ROUTED = re.compile("|".join(re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(name)) for name in sorted(_ROUTED)))
"""Matches the names of routed experts' tensors, be there one for each expert or one for all of a layer."""


def language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the language model: of a multimodal model a part of the whole config."""
    text = config.get(TEXT)
    return text if isinstance(text, Mapping) and _around(config) else config


def readers(whole_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a model by its config, which may be any program's.

    `title` and, of a multimodal model, `around`; `vllm`, `llama_cpp` and `limits` of what reads it; `nearly` and
    `keeps_ffn` of its target.
    """
    config, around = language(whole_config), _around(whole_config)
    (kind,) = texts(config.get("model_type"))[:1] or [""]
    sparse = any(whole(config.get(name)) for name in FIELDS["experts"])  # a few classes are dense without any
    target = TARGETS.get(kind) if sparse or kind not in DENSE else None
    named = target or DENSE.get(kind)
    known = named.readers if named and not around else Readers()
    try:
        limits = target.reader_limits(config) if target and not around else ()
        nearly = target.nearly(config) if target and target.nearly else None
    except (KeyError, TypeError, AttributeError, ValueError):  # no config that transformers would write
        limits, nearly = (), None
    computed = config.get("hidden_act", "silu") == "silu"  # both compute SiLU, whatever a config names
    ropes = [rope for name in ("rope_parameters", "rope_scaling") if isinstance(rope := config.get(name), Mapping)]
    rope = next(filter(None, ropes), {})
    head, heads, hidden = (whole(config.get(name)) for name in ("head_dim", "num_attention_heads", "hidden_size"))
    usual = known.llama_cpp_any_head or head is None or head * (heads or 0) == hidden
    return {
        "title": named.title if named else None, "around": around, "limits": limits, "nearly": nearly,
        "keeps_ffn": bool(target and target.keeps_ffn), "vllm": computed and known.vllm,
        "llama_cpp": computed and usual and rope.get("rope_type", rope.get("type", "default")) in known.llama_cpp_ropes,
    }  # fmt: skip


def _around(config: Mapping[str, Any]) -> str | None:
    """Return what people call the multimodal model of this config; None where it is none that is known."""
    (kind,) = texts(config.get("model_type"))[:1] or [""]
    wrapper = WRAPPERS.get(kind)
    return wrapper.title if wrapper and isinstance(config.get(TEXT), Mapping) else None
