"""What a card knows of each kind of model: its title, which other programs read it, and how its config names things."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from upcycle.card.values import whole
from upcycle.families.compact import COMPACT
from upcycle.families.readers import reader_limits

FIELDS: Mapping[str, tuple[str, ...]] = {
    "experts": ("num_local_experts", "num_experts"), "top_k": ("num_experts_per_tok", "top_k"),
    "layers": ("num_hidden_layers",), "context": ("max_position_embeddings",),
    "data type": ("dtype", "torch_dtype"), "rank": ("rank", "r"),
}  # fmt: skip
"""A fact -> the config fields that may hold it; the first that says anything counts."""

ROUTED = re.compile(r"\.(?:experts|block_sparse_moe\.(?:input|output)_linear)\.")
"""Matches the names of routed experts' tensors, be there one for each expert or one for all of a layer."""

_ROPES = ("default", "linear", "yarn", "llama3")
"""Types of rope scaling that `make interop` has compared in llama.cpp."""


@dataclass(frozen=True)
class Target:
    """A kind of model that upcycle writes, and what reads it beside transformers."""

    title: str
    vllm: Literal["run", "compared"] | None = None  # compared: its loader's names, shapes and config, without a run
    ropes: tuple[str, ...] = ()  # types of rope scaling that llama.cpp computes in it; none: it does not read it
    any_head: bool = True  # whether llama.cpp reads heads of another width than hidden size / heads
    limits: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda _: ()  # what readers do not compute of a config


TARGETS: Mapping[str, Target] = {
    "mixtral": Target("Mixtral", "compared", _ROPES, limits=reader_limits),
    "granitemoeshared": Target("GraniteMoeShared", None, _ROPES[:-1], False, COMPACT["granitemoeshared"].reader_limits),
    "qwen2_moe": Target("Qwen2-MoE", limits=COMPACT["qwen2_moe"].reader_limits),
    "llama": Target("Llama", "run", _ROPES),
    "mistral": Target("Mistral", "run", _ROPES),
}
"""`model_type` of a config -> what is known of such models."""


def readers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `title`, `vllm`, `llama_cpp` and `limits` of a model by its config, which may be any program's."""
    kind = config.get("model_type")
    target = TARGETS.get(kind, Target("")) if isinstance(kind, str) else Target("")
    try:
        limits = target.limits(config)
    except (KeyError, TypeError, AttributeError, ValueError):  # no config that transformers would write
        limits = ()
    computed = config.get("hidden_act", "silu") == "silu"  # both compute SiLU, whatever a config names
    ropes = [rope for name in ("rope_parameters", "rope_scaling") if isinstance(rope := config.get(name), Mapping)]
    rope = next(filter(None, ropes), {})
    scaling = rope.get("rope_type", rope.get("type", "default"))
    head, heads, hidden = (whole(config.get(name)) for name in ("head_dim", "num_attention_heads", "hidden_size"))
    llama_cpp = scaling in target.ropes and (target.any_head or head is None or head * (heads or 0) == hidden)
    return {
        "title": target.title, "limits": limits, "vllm": computed and target.vllm, "llama_cpp": computed and llama_cpp
    }  # fmt: skip
