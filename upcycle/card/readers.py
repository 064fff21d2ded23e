"""Says which other programs read a model and what they get wrong, by its config; knows how configs name things."""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from upcycle.card.values import texts, whole
from upcycle.families.targets import TARGETS

FIELDS: Mapping[str, tuple[str, ...]] = {
    "experts": ("num_local_experts", "num_experts"), "top_k": ("num_experts_per_tok", "top_k"),
    "layers": ("num_hidden_layers",), "context": ("max_position_embeddings",),
    "data type": ("dtype", "torch_dtype"), "rank": ("rank", "r"),
}  # fmt: skip
"""A fact -> the config fields that may hold it; the first that says anything counts."""

_ROUTED = {row.name for target in TARGETS.values() for row in target.tensors if row.role == "experts"}
ROUTED = re.compile("|".join(re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(name)) for name in sorted(_ROUTED)))
"""Matches the names of routed experts' tensors, be there one for each expert or one for all of a layer."""


class ReadBy(NamedTuple):
    """What reads a kind of model beside transformers."""

    vllm: Literal["run", "compared"] | None = None  # compared: its loader's names, shapes and config, without a run
    ropes: tuple[str, ...] = ()  # types of rope scaling that `make interop` has compared in llama.cpp
    any_head: bool = True  # whether llama.cpp reads heads of another width than hidden size / heads


_DENSE = {"llama": "Llama", "mistral": "Mistral", "qwen3": "Qwen3", "phi3": "Phi-3"}
"""Titles of dense models, which a training may have for its output."""

_LLAMA = ReadBy("run", ("default", "linear", "yarn", "llama3"))
_READ_BY = {
    "llama": _LLAMA, "mistral": _LLAMA, "mixtral": _LLAMA._replace(vllm="compared"),
    "granitemoeshared": ReadBy(None, ("default", "linear", "yarn"), any_head=False),
}  # fmt: skip


def readers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `title`, `vllm`, `llama_cpp` and `limits` of a model by its config, which may be any program's."""
    (kind,) = texts(config.get("model_type"))[:1] or [""]
    target, known = TARGETS.get(kind), _READ_BY.get(kind, ReadBy())
    try:
        limits = target.reader_limits(config) if target else ()
    except (KeyError, TypeError, AttributeError, ValueError):  # no config that transformers would write
        limits = ()
    computed = config.get("hidden_act", "silu") == "silu"  # both compute SiLU, whatever a config names
    ropes = [rope for name in ("rope_parameters", "rope_scaling") if isinstance(rope := config.get(name), Mapping)]
    rope = next(filter(None, ropes), {})
    head, heads, hidden = (whole(config.get(name)) for name in ("head_dim", "num_attention_heads", "hidden_size"))
    usual = known.any_head or head is None or head * (heads or 0) == hidden
    return {
        "title": target.title if target else _DENSE.get(kind), "limits": limits, "vllm": computed and known.vllm,
        "llama_cpp": computed and usual and rope.get("rope_type", rope.get("type", "default")) in known.ropes,
    }  # fmt: skip
