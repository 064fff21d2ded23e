"""From an adapter and its base to the plan of a checkpoint of stock transformers.

| experts | full | compact |
|---|---|---|
| lora | `W + s B_i A_i` in gate, up and down | no: they are as wide as the FFN |
| ia3 | `(1 + v_i)` on the rows of up | no: as wide |
| bottleneck | gate and up with `m` rows more, `s` down with `m` columns more | the FFN is the shared expert |
| pesc | no: they read what the FFN gives | no |
"""

from upcycle.build.adapter_experts import AdapterExperts
from upcycle.build.builder import Order, build_plan, expert_dtype
from upcycle.build.methods import method_of
from upcycle.build.side_files import merged_side_files
from upcycle.checkpoint.header import DTYPE_BITS, TensorSpec, read_header, rows_of
from upcycle.checkpoint.reader import Checkpoint
from upcycle.errors import UnsupportedError
from upcycle.families.grouped import grouped_mm_problem, row_multiple
from upcycle.families.match import Match
from upcycle.families.pairs import Pair
from upcycle.plan.dtypes import DTYPE_WORDS
from upcycle.plan.plan import Plan
from upcycle.plan.sources import Copy, LowRank, Part
from upcycle.requests.merge import Merge


def plan_merge(base: Checkpoint, matched: Match, adapter: AdapterExperts, request: Merge) -> Plan:
    """Return the plan of writing `base` with the experts of `adapter`; `matched` is of the target that is written.

    Raises UnsupportedError, with the reason, for experts or a base that no stock model computes.
    """
    gated, attention = adapter.base.modules.gated, bool(adapter.attention_rank)
    if problem := target_problem(matched.pair, gated=gated, attention=attention):
        raise UnsupportedError(f"{problem}; it stays an adapter", where=adapter.directory)
    _check_width(base, matched, adapter, request)

    method = method_of(adapter.kind)

    def carried(spec: TensorSpec) -> Part:
        pair = adapter.update(spec.name) if adapter.attention_rank else None
        if pair is None:
            return Copy(spec)
        whole, (a, b) = base.tensors[spec.name], pair
        first = (spec.offset - whole.offset) // (whole.nbytes // whole.shape[0])  # of a fused matrix it is some rows
        return LowRank(spec, a, rows_of(b, first, first + spec.shape[0]), adapter.attention_scaling)

    order = Order(
        experts=lambda ffn, slot: method(ffn, slot, adapter),
        count=adapter.experts[0],
        top_k=adapter.experts[0] if adapter.routing == "dense" else adapter.top_k,
        router=lambda slot: Copy(adapter.router(slot.layer)),
        carried=carried,
        seed=0,  # nothing is drawn
        dtype=request.dtype,
        shard_bytes=request.shard_bytes(),
        files=merged_side_files(base.directory, adapter.directory),
        sparse=(True,) * matched.layers,
        shared=request.to == "compact",
        headers={**base.headers, adapter.weights.name: read_header(adapter.weights)},
    )
    return build_plan(base, matched, order)


def target_problem(pair: Pair, *, gated: bool, attention: bool) -> str | None:
    """Return why no adapter of such a base becomes a mixture of this pair; None if one can.

    `gated` says whether the adapter's experts have a gate, `attention` whether it updates the attention.
    """
    dense, target = pair.dense.model_type, pair.target
    if target.router.scores != "softmax":
        return (
            f"the adapter's routers score by softmax, those of {target.model_type} by {target.router.scores}, so the "
            "experts would be weighed differently"
        )
    if not gated and "gate" in pair.dense.parts:
        return f"the FFN of {dense} has no gate, nor have the adapter's experts, and those of {target.model_type} do"
    if target.keeps_ffn:
        return f"{target.model_type} cannot express the adapter's experts, for {target.keeps_ffn}"
    moved = [part for part in ("q", "k", "v", "o") if f"attention.{part}" in pair.changes]
    if attention and moved:
        return (
            f"the attention's {' and '.join(moved)} of a {dense} take another form in a {target.model_type}, in which "
            "an update of them cannot be merged (attach with --attention-rank 0 what shall be merged)"
        )
    return None


def _check_width(base: Checkpoint, matched: Match, adapter: AdapterExperts, request: Merge) -> None:
    """Raise UnsupportedError for rows at which stock transformers stops: before the work, not at its proof."""
    dense, hidden = matched.sizes["F"], matched.sizes["D"]
    width = adapter.rank if request.to == "compact" else dense + adapter.rank * (adapter.kind == "bottleneck")
    dtype = expert_dtype(base, matched, request.dtype)
    multiple = row_multiple(dtype)
    if problem := grouped_mm_problem({"hidden size": hidden}, dtype):
        hint = "--dtype f32" if request.dtype != "f32" and not grouped_mm_problem({"": hidden}, "F32") else None
        raise UnsupportedError(
            f"no stock model runs such a merge by its defaults ({problem})", where=base.directory, hint=hint
        )
    if width % multiple:
        what = f"{dense} of the base" + (f" and {adapter.rank} of the adapter" if width > dense else "")
        narrow = DTYPE_BITS[dtype] < 32 and not width % 4
        rank = "another --rank when attaching" if adapter.kind == "bottleneck" else None
        hints = [hint for hint in ("--dtype f32" if narrow else None, rank) if hint]
        raise UnsupportedError(
            f"experts whose width is not a multiple of {multiple} crash stock transformers in "
            f"{DTYPE_WORDS[dtype]} (grouped_mm: strides should be multiple of 16 bytes)",
            where=adapter.directory,
            found=f"{width} wide" + (f" ({what})" if width != adapter.rank else ""),
            hint=" or ".join(hints) or None,
        )


def check_mergeable(adapter: AdapterExperts, request: Merge) -> None:
    """Raise UnsupportedError for experts that a stock model would compute inexactly or not at all."""
    where, stays = adapter.directory, "it stays an adapter"
    if adapter.kind == "pesc":
        raise UnsupportedError(
            f"{adapter.kind} experts read the FFN's output: no stock model has such experts; {stays}", where=where
        )
    if adapter.routing == "top1":
        raise UnsupportedError(
            "a top1 router weighs its expert by a probability, so the weights do not sum to one; stock models divide "
            f"them by their sum and would compute something else (by about 5e-2 of the logits); {stays}",
            where=where,
            hint="attach with --routing topk or dense for what shall be merged",
        )
    counts = sorted(set(adapter.experts))
    if len(counts) > 1 or counts[0] < 1:
        kind = "layers without experts" if counts[0] < 1 else "layers with different numbers of experts"
        raise UnsupportedError(
            f"the adapter has {kind}, and stock models have one number for all layers; {stays}",
            where=where,
            found=f"{counts[0]} to {counts[-1]} experts",
        )
    if request.to == "compact" and adapter.kind != "bottleneck":
        raise UnsupportedError(
            f"{adapter.kind} experts change the FFN itself, so each is as wide as it: there is no compact form of them",
            where=where,
            hint="--to full, or attach with --expert-type bottleneck",
        )
