"""Builds the plan of a mixture of experts from a dense model, however its experts and routers are made.

Reads headers and side files, never weights.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from upcycle.build.experts import Experts, Ffn, Slot
from upcycle.build.padding import padded
from upcycle.build.routers import RouterSlot
from upcycle.build.values import filled, scaled
from upcycle.checkpoint.header import Header, TensorSpec
from upcycle.checkpoint.reader import Checkpoint
from upcycle.errors import UnsupportedError
from upcycle.families.config import longest_sequence
from upcycle.families.match import Match
from upcycle.families.parts import HEAD, MATRICES, Tensor, dimension
from upcycle.families.targets.target import SCALE
from upcycle.families.wrappers import Frame
from upcycle.plan.dtypes import DTYPE_WORDS, DTYPES, main_dtype, narrowest_dtype
from upcycle.plan.layout import lay_out
from upcycle.plan.plan import MAX_TENSORS, Plan, Write
from upcycle.plan.sources import (
    Copy,
    Fold,
    Part,
    Reordered,
    Source,
    Stacked,
    random_key,
    reads,
)


@dataclass(frozen=True)
class Order:
    """What a plan is built from, beside the dense model."""

    experts: Callable[[Ffn, Slot], Experts]
    count: int  # experts of each layer
    top_k: int
    router: Callable[[RouterSlot], Source]
    carried: Callable[[TensorSpec], Part]  # of everything that is no FFN
    seed: int
    dtype: str  # as `requests` has it: keep, f32, f16, bf16
    shard_bytes: int
    files: Mapping[str, Path]  # to be copied beside the weights
    sparse: tuple[bool, ...]  # of each layer: whether it gets experts
    shared: bool  # a shared expert, which every token uses, stands beside them
    headers: Mapping[str, Header]  # of the files that are read, by their names in the receipt
    frame: Frame | None = None  # what is around the language model; None: nothing


def build_plan(base: Checkpoint, matched: Match, order: Order) -> Plan:
    """Return the whole plan; raise UnsupportedError for all that would go wrong, before a byte is written."""
    _check_count(matched, order)
    layout = _Layout(base, matched, order)
    writes = layout.writes()
    if any(write.dtype == "F64" for write in writes):
        raise UnsupportedError(
            f"no {matched.target.model_type} runs in float64",
            where=base.directory,
            hint="--dtype f32 rounds the weights",
        )
    config = layout.config(writes)
    rounded = sorted({write.dtype for write in writes if not write.lossless})
    target, frame = matched.target, order.frame
    inexact = layout.inexact or (f"values are rounded to {' and '.join(rounded)}" if rounded else None)
    return Plan(
        shards=lay_out(_framed(writes, frame) if frame else writes, order.shard_bytes),
        config=frame.around(config) if frame else config,
        files=order.files,
        sources={name: {"size": h.size, "header_sha256": h.sha256} for name, h in sorted(order.headers.items())},
        inexact=inexact,
        active_experts=order.top_k,
        total_experts=order.count,
        layers=matched.layers,
        sparse_layers=sum(order.sparse),
        cache_width=matched.cache_width,
        longest=longest_sequence(config),
        hidden=matched.sizes["D"],
        width=layout.width,
        vocabulary=matched.sizes["V"],
        reader_limits=() if frame else target.reader_limits(config),
        notes=(*matched.pair.notes_on(config), *((target.nearly(config),) if target.nearly else ())),
    )


def expert_dtype(base: Checkpoint, matched: Match, asked: str) -> str:
    """Return the safetensors dtype of fewest bits in which experts may be run; an `asked` dtype is the only one."""
    if asked in DTYPES:
        return DTYPES[asked]
    matrices = [matched.part(base, name, layer) for name in MATRICES for layer in range(matched.layers)]
    word = matched.config.get("dtype") or matched.config.get("torch_dtype")
    return narrowest_dtype([spec.dtype for spec in matrices if spec], word)


def _check_count(matched: Match, order: Order) -> None:
    layers, least = matched.layers, matched.target.least_experts
    if order.count < least:
        raise UnsupportedError(
            f"{matched.target.model_type} does not run with so few experts",
            found=order.count,
            expected=f"{least} or more",
            hint=f"--experts {least}",
        )
    count = sum(
        (layers if tensor.per_layer else 1) * (order.count if tensor.per_expert else 1)
        for tensor in matched.target.tensors
    )
    if count > MAX_TENSORS:
        raise UnsupportedError(
            "too many tensors",
            found=f"{count:,} for {order.count:,} experts in each of {layers} layers",
            expected=f"at most {MAX_TENSORS:,}",
            hint="fewer --experts",
        )


class _Layout:
    """Places every part of the mixture in its tensor."""

    def __init__(self, base: Checkpoint, matched: Match, order: Order) -> None:
        self._base, self._matched, self._order = base, matched, order
        self._asked = DTYPES.get(order.dtype)
        used = [name for _, _, name in matched.tensors() if name in base.tensors]
        self._main = self._asked or main_dtype(base.tensors[name] for name in used)
        self._own = {header.path for header in base.headers.values()}
        self._experts = {layer: self._experts_of(layer) for layer, sparse in enumerate(order.sparse) if sparse}
        self._experts = _of_one_width(self._experts, matched.sizes["D"])
        first = next(iter(self._experts.values()))
        self._sizes = {
            **matched.sizes,
            "E": order.count,
            "M": first.ffns[0].width,
            "S": first.shared.width if first.shared else matched.target.idle_width,
        }
        self.width = first.ffns[0].width
        self.inexact = next((made.inexact for made in self._experts.values() if made.inexact), None)
        _check_shared_width(matched, self._sizes)
        self._config = self._target_config()
        self._decides = {
            **self._config,
            "ffn": ["sparse" if sparse else "dense" for sparse in order.sparse],
            "shared": order.shared,
        }

    def writes(self) -> list[Write]:
        """Return every output tensor, in the order of the source file, experts side by side."""
        tensors = self._matched.target.tensors
        writes = [write for tensor in tensors if not tensor.per_layer for write in self._writes_of(tensor, 0)]
        for layer in range(self._matched.layers):
            writes += [write for tensor in tensors if tensor.per_layer for write in self._writes_of(tensor, layer)]
        order = {(spec.path, name): number for number, (name, spec) in enumerate(self._base.tensors.items())}
        last = len(order)

        def first_read(write: Write) -> int:
            return min((order.get((spec.path, spec.name), last) for spec in reads(write.source)), default=last)

        return sorted(writes, key=first_read)

    def _target_config(self) -> dict[str, Any]:
        """Return the output's config, all but its dtype."""
        target, choice = self._matched.target, self._matched.target.layer_choice
        chosen = {**self._sizes, "top_k": self._order.top_k, SCALE: self._sizes["H"] ** -0.5}
        chosen["S/M"] = self._sizes["S"] // self._sizes["M"]
        config = dict(self._matched.config)
        said = {name for name, letter in target.fields.items() if letter == SCALE and name in config}
        config.update({name: chosen[letter] for name, letter in target.fields.items() if name not in said})
        config.update({name: config.pop(name, value) for name, value in target.constants.items()})
        config.update(self._matched.pair.constants)
        config.update((choice.fields(self._order.sparse) if choice else None) or {})
        return config

    def config(self, writes: list[Write]) -> dict[str, Any]:
        """Return the output's config."""
        carried, config = self._matched.config, dict(self._config)
        # transformers 5 reads `dtype`, programs made for 4 read `torch_dtype`; by default the dense model's own word
        named = carried.get("dtype") or carried.get("torch_dtype")
        word = named if not self._asked and named else DTYPE_WORDS[self._asked or main_dtype(writes)]
        config["dtype"] = config["torch_dtype"] = word
        return config

    def _experts_of(self, layer: int) -> Experts:
        def matrix(name: str) -> Part:
            spec = self._matched.part(self._base, name, layer)
            assert spec is not None  # noqa: S101 - `match` has found every tensor but the head
            return Copy(spec)

        gate = matrix("gate") if "gate" in self._matched.dense.parts else None
        ffn = Ffn(gate, matrix("up"), matrix("down"), self._matched.sizes_in(layer)["F"])
        slot = Slot(layer, self._matched.sizes["D"], self._order.shared, partial(self._key, layer))
        made = self._order.experts(ffn, slot)
        if made.shared is None and self._matched.target.always_shared:
            return replace(made, shared=made.ffns[0].without_output(slot.hidden))
        return made

    def _key(self, layer: int, expert: int, matrix: str) -> str:
        """The key of the values of one matrix: the seed and the tensor's name, or the place in it."""
        part = f"expert.{matrix}"
        tensor = next(tensor for tensor in self._matched.target.tensors if part in tensor.parts)
        name = tensor.name.format(layer=layer, expert=expert)
        alone = tensor.per_expert and tensor.parts == (part,)
        return random_key(self._order.seed, name if alone else f"{name}:{expert}:{matrix}")

    def _writes_of(self, tensor: Tensor, layer: int) -> Iterator[Write]:
        if tensor.when and not tensor.when.holds(self._decides, layer):
            return
        if tensor.parts == (HEAD,) and self._matched.tied and self._matched.part(self._base, HEAD) is None:
            return
        sizes = {**self._sizes, **self._matched.sizes_in(layer)}
        shape = tuple(dimension(letters, sizes) for letters in tensor.shape)
        for number in range(self._order.count) if tensor.per_expert else (None,):
            name = tensor.name.format(layer=layer, expert=number)
            source = self._source(tensor, name, layer, number)
            yield Write(name, self._dtype(source), shape, tensor.role, source)

    def _source(self, tensor: Tensor, name: str, layer: int, number: int | None) -> Source:
        if tensor.parts == ("router",):
            slot = RouterSlot(layer, self._order.count, self._matched.sizes["D"], random_key(self._order.seed, name))
            return self._order.router(slot)
        if not tensor.parts:
            return filled(tensor.fill or 0)
        if tensor.fill is not None and not self._has(tensor.parts[0], layer):
            return filled(tensor.fill or 0)
        if "." in tensor.parts[0] and tensor.parts[0].split(".")[0] in ("expert", "shared"):
            parts = tuple(scaled(part, tensor.factor) for part in self._ffn_parts(tensor, layer, number))
            return parts[0] if len(parts) == 1 else Stacked(parts)
        carried = tuple(self._carried(part, layer) for part in tensor.parts)
        return carried[0] if len(carried) == 1 else Stacked(carried)

    def _has(self, part: str, layer: int) -> bool:
        """Whether there is such a part to be placed: of the dense model, or of its experts."""
        if part.startswith("shared."):
            return self._experts[layer].shared is not None
        return part.startswith("expert.") or self._matched.place(part, layer) is not None

    def _carried(self, part: str, layer: int) -> Part:
        """Return what is no FFN as the pair has it; a head that is no longer tied is what the embeddings were."""
        spec = self._matched.part(self._base, part, layer)
        if spec is None and part == HEAD:
            spec = self._matched.part(self._base, "embeddings")
        assert spec is not None  # noqa: S101 - `match` has found every tensor but the head
        change, carried = self._matched.pair.changes.get(part), self._order.carried(spec)
        assert not change or carried == Copy(spec)  # noqa: S101 - `merge` refuses updates of what takes another form
        if change and change.order:
            return Reordered(spec, change.order(self._config))
        if change:
            return Fold(spec, change.add, change.scale(self._matched.sizes))
        return carried

    def _ffn_parts(self, tensor: Tensor, layer: int, number: int | None) -> Iterator[Part]:
        """Yield the parts of a tensor that are matrices of experts, expert by expert, or of the shared expert."""
        made = self._experts[layer]
        ffns = made.ffns if number is None else (made.ffns[number],)
        for ffn in ffns if tensor.parts[0].startswith("expert.") else (made.shared,):
            assert ffn is not None  # noqa: S101 - a method fills the shared expert of a target that has one
            matrices = dict(ffn.matrices())
            yield from (matrices[part.partition(".")[2]] for part in tensor.parts)

    def _dtype(self, source: Source) -> str:
        """The dtype asked for, else that of the base's tensors that are read where they agree, else of most of it."""
        of = {spec.dtype for spec in reads(source) if spec.path in self._own}
        return self._asked or (of.pop() if len(of) == 1 else self._main)


def _check_shared_width(matched: Match, sizes: Mapping[str, int]) -> None:
    """Raise UnsupportedError for a shared expert of a width that the target's config cannot say."""
    target, wide, narrow = matched.target, sizes["S"], sizes["M"]
    if (target.shared_like == "experts" and wide % narrow) or (target.shared_like == "one" and wide != narrow):
        raise UnsupportedError(
            f"the shared expert of {target.model_type} is as wide as {target.shared_like.replace('experts', 'some')} "
            "of the others",
            found=f"{wide} neurons beside experts of {narrow}",
            hint="--expert-width and --pad-width change them",
        )


def _framed(writes: list[Write], frame: Frame) -> list[Write]:
    """Return the writes of a language model as part of a whole, after copies of everything else."""
    others = [Write(spec.name, spec.dtype, spec.shape, "other", Copy(spec)) for spec in frame.others]
    return [*others, *(replace(write, name=frame.name(write.name)) for write in writes)]


def _of_one_width(experts: dict[int, Experts], hidden: int) -> dict[int, Experts]:
    """Return the experts of all layers as wide as the widest: a config has one width for them (`build.padding`)."""
    widths = {made.ffns[0].width for made in experts.values()}
    if len(widths) == 1:
        return experts
    return {layer: padded(made, hidden, max(widths)) for layer, made in experts.items()}
