"""From a checkpoint and a request to the plan of a conversion."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upcycle.build.builder import Order, build_plan, expert_dtype
from upcycle.build.experts import Experts, Ffn, Slot
from upcycle.build.layers import sparse_layers
from upcycle.build.methods import method_of
from upcycle.build.padding import padded
from upcycle.build.routers import ROUTERS, check_router_can_learn, router_warning
from upcycle.build.shared import check_shared, with_shared
from upcycle.build.side_files import side_files
from upcycle.checkpoint.place import DEQUANTISED_FILE
from upcycle.checkpoint.reader import Checkpoint
from upcycle.checkpoint.strict_json import read_object
from upcycle.checkpoint.vocabulary import token_count
from upcycle.families.config import unruled
from upcycle.families.find import find_pairs
from upcycle.families.grouped import grouped_mm_problem, padded_width, row_multiple
from upcycle.families.match import match
from upcycle.families.pairs import Pair
from upcycle.families.rules import NO_WINDOW, Drop
from upcycle.families.unread import reads
from upcycle.families.wrappers import TEXT, language_model, unwrap
from upcycle.message import listed
from upcycle.plan.dtypes import narrowest_dtype
from upcycle.plan.plan import Plan
from upcycle.plan.sources import Copy, Fold
from upcycle.requests import Conversion


def plan_conversion(checkpoint: Checkpoint, request: Conversion) -> Plan:
    """Return the whole plan of converting `checkpoint`.

    Raises CheckpointError, UnsupportedError or RequestError for all that would go wrong, before a byte is written.
    """
    text, frame = unwrap(checkpoint)
    matched = match(text, request.ignore_config, request.target)
    if frame:
        frame.check(matched.pair)
    check_router_can_learn(matched.target, request)
    check_shared(matched, request)
    method = method_of(request.method)
    dtype = expert_dtype(text, matched, request.dtype)

    def experts(ffn: Ffn, slot: Slot) -> Experts:
        made = with_shared(method(ffn, slot, request), ffn, slot, request)
        return padded(made, slot.hidden, row_multiple(dtype)) if request.pad_width else made

    order = Order(
        experts=experts,
        count=request.experts,
        top_k=request.top_k,
        router=lambda slot: ROUTERS[request.router](slot, request),
        carried=Copy,
        seed=request.seed,
        dtype=request.dtype,
        shard_bytes=request.shard_bytes(),
        files=side_files(checkpoint.directory, request, processors=frame is not None),
        sparse=sparse_layers(matched, request.layers),
        shared=request.shared != "none",
        headers=checkpoint.headers,
        frame=frame,
    )
    return build_plan(text, matched, order)


def conversion_warnings(checkpoint: Checkpoint, plan: Plan, request: Conversion) -> tuple[str, ...]:
    """Return what a user should know before the work is done: a sentence each, none for most conversions."""
    found = (
        _quantised_warning(checkpoint.directory), router_warning(request), _width_warning(plan),
        _vocabulary_warning(checkpoint, plan, request), _unread_warning(checkpoint, plan, request),
        _window_warning(checkpoint, plan),
        _rounding_warning(plan), *plan.notes,
    )  # fmt: skip
    return tuple(text for text in found if text)


def _quantised_warning(directory: Path) -> str | None:
    """Say of a quantised GGUF file what the conversion is exact to."""
    path = directory / DEQUANTISED_FILE
    if not path.is_file():
        return None
    kinds = read_object(path)
    return (
        f"the GGUF file has {sum(kinds.values())} quantised tensors ({', '.join(kinds)}): they are read as bfloat16, "
        "and the mixture computes what those compute, not what the model before quantisation did"
    )


def _width_warning(plan: Plan) -> str | None:
    """Say of rows at which stock transformers stops what can be done."""
    rows = {"hidden size": plan.hidden, "FFN width": plan.width}
    dtype = narrowest_dtype((write.dtype for write in plan.writes if write.role == "experts"), plan.config["dtype"])
    problem = grouped_mm_problem(rows, dtype)
    if problem is None:
        return None
    cure = f"--pad-width adds zero neurons up to {padded_width(plan.width, dtype)}"
    return problem if plan.hidden % row_multiple(dtype) else f"{problem}; {cure}"


def _rounding_warning(plan: Plan) -> str | None:
    """Say when weights must be computed, and that a wider dtype holds what comes of it."""
    folded = [write for write in plan.writes if isinstance(write.source, Fold) and not write.lossless]
    if not folded:
        return None
    roles, dtypes = ({getattr(write, name): None for write in folded} for name in ("role", "dtype"))
    return (
        f"{' and '.join(roles)} are not copied but computed, and rounded to {' and '.join(dtypes)}: the mixture "
        "computes nearly what the dense model does; --dtype f32 does not round, so it computes the same"
    )


def _dense_side(checkpoint: Checkpoint, plan: Plan) -> tuple[Mapping[str, Any], Pair]:
    """Return the config of the language model that is converted, and its pair."""
    config = language_model(checkpoint).config
    return config, find_pairs(config, plan.config.get(TEXT, plan.config)["model_type"])[0]


def _window_warning(checkpoint: Checkpoint, plan: Plan) -> str | None:
    """Say that transformers cuts the dense model's cache by a window that the model itself does not have."""
    config, pair = _dense_side(checkpoint, plan)
    window = config.get("sliding_window")
    if window is None or pair.fields.get("sliding_window") != Drop(NO_WINDOW):
        return None
    return (
        f"sliding_window {window} is left out, for {pair.dense.model_class} attends to everything; but transformers "
        "cuts its cache by it, so that text which the dense model generates can differ after so many tokens"
    )


def _unread_warning(checkpoint: Checkpoint, plan: Plan, request: Conversion) -> str | None:
    """Name the config fields without influence that nobody told upcycle of, and what has become of them."""
    config, pair = _dense_side(checkpoint, plan)
    unread = [name for name in unruled(pair, config) if name not in request.ignore_config]
    if not unread:
        return None
    left = [name for name in unread if reads(pair.target.model_type, name)]
    kept = [name for name in unread if name not in left]
    parts = [f"{listed(kept)} kept" if kept else "", f"{listed(left)} left out" if left else ""]
    return (
        f"config.json has fields that {pair.dense.model_class} of transformers does not read, so that they change "
        f"nothing: {', '.join(part for part in parts if part)}"
    )


def _vocabulary_warning(checkpoint: Checkpoint, plan: Plan, request: Conversion) -> str | None:
    """Say when the tokenizer has tokens that the embedding has no row for."""
    tokens, rows = token_count(Path(request.tokenizer or checkpoint.directory)), plan.vocabulary
    if tokens is None or tokens <= rows:
        return None
    return (
        f"the tokenizer has {tokens:,} tokens and the embedding {rows:,} rows: the model cannot read text with one of "
        "the others, and train and verify refuse it"
    )
