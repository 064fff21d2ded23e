"""How many parameters there are, and how many of them a token uses: by the records, or else by the weights' headers."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upcycle.card.values import mapping, whole
from upcycle.checkpoint.adapter import ADAPTER_WEIGHTS
from upcycle.checkpoint.header import TensorSpec, read_header
from upcycle.checkpoint.reader import inside, open_checkpoint
from upcycle.errors import CheckpointError

Parameters = tuple[int, int | None]
"""All of them, and those that a token uses, where that is known."""

_OF_EXPERTS = re.compile(r"\.(?:experts|block_sparse_moe\.(?:input|output)_linear)\.")
"""Tensors of the routed experts: one for each of them, or those of all fused into one as GraniteMoe has them."""


def recorded(entry: Mapping[str, Any]) -> Parameters | None:
    """Return what an entry of the lineage says."""
    told = mapping(entry.get("parameters"))
    total, active = whole(told.get("total")), whole(told.get("active"))
    return (total, active) if total else None


def of_adapter(directory: Path) -> Parameters | None:
    """Return the parameters of an adapter itself, or None where its weights are not there."""
    try:
        return _total(read_header(inside(directory, ADAPTER_WEIGHTS)).tensors), None
    except CheckpointError:
        return None


def of_model(directory: Path, experts: int | None, top_k: int | None) -> Parameters | None:
    """Return those of a model with so many experts in each layer, or None where its weights are not there."""
    try:
        tensors = open_checkpoint(directory).tensors
    except CheckpointError:
        return None
    total = _total(tensors)
    if not experts or not top_k or top_k > experts:
        return total, None
    routed = _total({name: spec for name, spec in tensors.items() if _OF_EXPERTS.search(name)})
    return total, total - routed + routed * top_k // experts if routed else None


def _total(tensors: Mapping[str, TensorSpec]) -> int:
    return sum(math.prod(spec.shape) for spec in tensors.values())
