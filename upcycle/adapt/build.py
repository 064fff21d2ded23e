"""From an adapter and its base to the plan of a plain checkpoint. Reads headers and side files, never weights.

| experts | full | compact |
|---|---|---|
| lora | `W + s B_i A_i` in gate, up and down | no: they are as wide as the FFN |
| ia3 | `(1 + v_i)` on the rows of up | no: as wide |
| bottleneck | gate and up with `m` rows more, `s` down with `m` columns more | the FFN is the shared expert |
| pesc | no: they read what the FFN gives | no |
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from upcycle.adapt.draft import Change, Draft
from upcycle.adapt.saved import Saved
from upcycle.checkpoint.header import DTYPE_BITS, TensorSpec, read_header
from upcycle.checkpoint.reader import CHAT_TEMPLATE_FILES, GENERATION_FILE, TOKENIZER_FILES, Checkpoint, present_files
from upcycle.errors import UnsupportedError
from upcycle.families.compact import COMPACT, DEFAULT_TARGET, Compact, Fused
from upcycle.families.family import TensorRow
from upcycle.families.match import Match
from upcycle.plan.dtypes import DTYPE_WORDS, DTYPES, main_dtype
from upcycle.plan.layout import lay_out
from upcycle.plan.plan import MAX_TENSORS, Plan, Write
from upcycle.plan.sources import Columns, Copy, LowRank, Part, RowScaled, Scaled, Source, Stacked, Zeros, reads
from upcycle.requests.merge import Merge

GROUPED_BYTES = 16
"""What the bytes of an expert's row must be a multiple of: torch's grouped_mm, by which stock transformers runs
experts, stops at any other width (seen in float32, float16 and bfloat16)."""


def build_merge(base: Checkpoint, matched: Match, saved: Saved, request: Merge) -> Draft:
    """Return the plan of writing `base` with the experts of `saved` as a checkpoint of stock transformers.

    Raises UnsupportedError, with the reason, for experts or a base that no stock model computes.
    """
    _check_experts(saved, request)
    target = _Target(base, matched, saved, request)
    compact = COMPACT[request.target or DEFAULT_TARGET] if request.to == "compact" else None
    target.check_width(saved.rank if compact else target.width)
    writes = list(target.compact(compact) if compact else target.full())
    config = target.compact_config(compact) if compact else target.full_config()
    order = {spec: number for number, spec in enumerate(base.tensors.values())}
    last = len(order)
    writes.sort(key=lambda write: min((order.get(spec, last) for spec in reads(write.source)), default=last))
    headers = {**base.headers, saved.weights.name: read_header(saved.weights)}
    plan = Plan(
        shards=lay_out(writes, request.shard_bytes()),
        config=config,
        files=_side_files(base.directory, saved.directory),
        sources={name: {"size": h.size, "header_sha256": h.sha256} for name, h in sorted(headers.items())},
        exact=all(write.lossless for write in writes),
        active_experts=target.top_k,
        total_experts=target.experts,
    )
    return Draft(plan, tuple(target.changes()), compact.reader_limits(config) if compact else ())


def _check_experts(saved: Saved, request: Merge) -> None:
    """Refuse what is inexact or impossible."""
    where, stays = saved.directory, "it stays an adapter"
    if saved.kind == "pesc":
        raise UnsupportedError(
            f"pesc experts read the FFN's output: no stock model has such experts; {stays}", where=where
        )
    if saved.routing == "top1":
        raise UnsupportedError(
            "a top1 router weighs its expert by a probability, so the weights do not sum to one; stock models divide "
            f"them by their sum and would compute something else (by about 5e-2 of the logits); {stays}",
            where=where,
            hint="attach with --routing topk or dense for what shall be merged",
        )
    counts = sorted(set(saved.experts))
    if len(counts) > 1 or counts[0] < 1:
        kind = "layers without experts" if counts[0] < 1 else "layers with different numbers of experts"
        raise UnsupportedError(
            f"the adapter has {kind}, and stock models have one number for all layers; {stays}",
            where=where,
            found=f"{counts[0]} to {counts[-1]} experts",
        )
    if request.to == "compact" and saved.kind != "bottleneck":
        raise UnsupportedError(
            f"{saved.kind} experts change the FFN itself, so each is as wide as it: there is no compact form of them",
            where=where,
            hint="--to full, or attach with --expert-type bottleneck",
        )


class _Target:
    """What is written, tensor by tensor."""

    def __init__(self, base: Checkpoint, matched: Match, saved: Saved, request: Merge) -> None:
        self.base, self.matched, self.saved = base, matched, saved
        self.names, self.layers = matched.family.names, matched.sizes["L"]
        self.asked = DTYPES.get(request.dtype)
        self.experts = saved.experts[0]
        self.top_k = self.experts if saved.routing == "dense" else saved.top_k
        self.width = matched.sizes["F"] + (saved.rank if saved.kind == "bottleneck" else 0)
        self.main = self.asked or main_dtype(base.tensors.values())
        if not self.asked and any(spec.dtype == "F64" for spec in base.tensors.values()):
            raise UnsupportedError(
                "no mixture of experts runs in float64", where=base.directory, hint="--dtype f32 rounds the weights"
            )
        self.ffn = {"gate": self.names.gate, "up": self.names.up, "down": self.names.down}
        self._found: list[Change] = []
        rows = len(matched.family.tensors)
        if rows * self.layers * self.experts > MAX_TENSORS:
            raise UnsupportedError("too many tensors", found=f"{self.experts:,} experts in {self.layers} layers")

    def check_width(self, width: int) -> None:
        """Refuse experts of a width at which stock transformers stops."""
        multiple = GROUPED_BYTES * 8 // DTYPE_BITS[self.main]
        if width % multiple:
            what = f"{self.matched.sizes['F']} of the base" + (
                f" and {self.saved.rank} of the adapter" if width > self.matched.sizes["F"] else ""
            )
            narrow = DTYPE_BITS[self.main] < 32 and not width % 4
            rank = "another --rank when attaching" if self.saved.kind == "bottleneck" else None
            hints = [hint for hint in ("--dtype f32" if narrow else None, rank) if hint]
            raise UnsupportedError(
                f"experts whose width is not a multiple of {multiple} crash stock transformers in "
                f"{DTYPE_WORDS[self.main]} (grouped_mm: strides should be multiple of 16 bytes)",
                where=self.saved.directory,
                found=f"{width} wide" + (f" ({what})" if width != self.saved.rank else ""),
                hint=" or ".join(hints) or None,
            )

    def changes(self) -> Iterator[Change]:
        """Yield what tells every expert from the base; after the writes have been listed."""
        return iter(self._found)

    # Full: every expert a whole FFN

    def full(self) -> Iterator[Write]:
        """Yield every tensor of the family's own mixture of experts."""
        for row in self.matched.family.tensors:
            for layer in range(self.layers) if row.per_layer else (0,):
                yield from self._row(row, layer)

    def _row(self, row: TensorRow, layer: int) -> Iterator[Write]:
        target = row.target.format(layer=layer, expert="{expert}")
        if row.source is None:
            yield self._router(target, layer)
            return
        spec = self.base.tensors.get(row.source.format(layer=layer))
        if spec is None:  # the head of a model with tied embeddings
            return
        if not row.per_expert:
            yield self._carried(target, row.role, spec, layer)
            return
        which = next((part for part, name in self.ffn.items() if row.source.endswith(f".{name}.weight")), None)
        if which is None:
            raise UnsupportedError(f"no way is known to merge experts into {row.source!r}", where=self.base.directory)
        for number in range(self.experts):
            yield self._expert(target.format(expert=number), row.role, spec, layer, which, number)

    def _expert(self, target: str, role: str, spec: TensorSpec, layer: int, which: str, number: int) -> Write:
        saved, block = self.saved, self.names.block
        source: Source = Copy(spec)
        shape = spec.shape
        if saved.kind == "lora":
            a, b = (saved.expert(layer, block, f"{which}_{letter}", number) for letter in "AB")
            source = LowRank(spec, a, b, saved.scaling)
        elif saved.kind == "ia3" and which == "up":
            source = RowScaled(spec, saved.expert(layer, block, "scale", number))
        elif saved.kind == "bottleneck":
            part = self._small(layer, which, number)
            if which == "down":
                shape = (shape[0], shape[1] + saved.rank)
                source = Columns((Copy(spec), part), rows=shape[0])
            else:
                shape = (shape[0] + saved.rank, shape[1])
                source = Stacked((Copy(spec), part))
        write = Write(target, self.asked or spec.dtype, shape, role, source)
        self._note(write, spec, layer, which, number)
        return write

    def _note(self, write: Write, spec: TensorSpec, layer: int, which: str, number: int) -> None:
        """Remember by what the expert differs from the base."""
        if self.saved.kind != "bottleneck":
            self._found.append(Change(layer, number, write, Copy(spec), write.name))
        elif which == "down":
            added = self._delta(write.name, write.dtype, layer, number)
            self._found.append(Change(layer, number, added, Zeros(), write.name, column=spec.shape[1]))

    def _small(self, layer: int, which: str, number: int) -> Part:
        """One matrix of a bottleneck; the down projection takes the scaling."""
        spec = self.saved.expert(layer, self.names.block, f"{which}_proj", number)
        return Scaled(spec, self.saved.scaling) if which == "down" and self.saved.scaling != 1 else Copy(spec)

    def _delta(self, name: str, dtype: str, layer: int, number: int) -> Write:
        """The down projection of a bottleneck by itself: what is zero as long as the expert does nothing."""
        return Write(
            name, dtype, (self.matched.sizes["D"], self.saved.rank), "experts", self._small(layer, "down", number)
        )

    def _router(self, target: str, layer: int) -> Write:
        spec = self.saved.router(layer, self.names.block)
        return Write(target, self.main, spec.shape, "router", Copy(spec))

    def _carried(self, target: str, role: str, spec: TensorSpec, layer: int) -> Write:
        """A tensor that is no FFN: as it is, or with the adapter's LoRA on the attention."""
        module = spec.name.removeprefix(f"model.layers.{layer}.").removesuffix(".weight")
        pair = self.saved.attention(layer, module) if module in self.names.attention else None
        source: Source = LowRank(spec, *pair, self.saved.attention_scaling) if pair else Copy(spec)
        return Write(target, self.asked or spec.dtype, spec.shape, role, source)

    def full_config(self) -> dict[str, Any]:
        """Return the config of the family's mixture of experts."""
        family = self.matched.family
        chosen: Mapping[str, int] = {"experts": self.experts, "top_k": self.top_k}
        config = {**self.matched.config, **{name: chosen[what] for name, what in family.expert_fields.items()}}
        config.update(family.constants)
        config["intermediate_size"] = self.width
        return self._with_dtype(config)

    def _with_dtype(self, config: dict[str, Any]) -> dict[str, Any]:
        """Add the word by which readers choose what to run in."""
        named = self.matched.config.get("dtype") or self.matched.config.get("torch_dtype")
        word = DTYPE_WORDS[self.main] if self.asked or not named else named
        return {**config, "dtype": word, "torch_dtype": word}

    # Compact: the FFN once

    def compact(self, target: Compact) -> Iterator[Write]:
        """Yield every tensor of a mixture with a shared expert."""
        for row in self.matched.family.tensors:
            if row.source is None or row.per_expert:
                continue
            for layer in range(self.layers) if row.per_layer else (0,):
                spec = self.base.tensors.get(row.source.format(layer=layer))
                if spec is not None:
                    yield self._carried(spec.name, row.role, spec, layer)
        for layer in range(self.layers):
            for fused in target.rows:
                yield from self._fused(fused, layer)

    def _fused(self, row: Fused, layer: int) -> Iterator[Write]:
        sizes = {**self.matched.sizes, "E": self.experts, "M": self.saved.rank, "1": 1}
        sizes |= {"2F": 2 * sizes["F"], "2M": 2 * sizes["M"]}
        shape = tuple(sizes[letter] for letter in row.shape)
        if row.parts == ("router",):
            yield self._router(row.target.format(layer=layer), layer)
            return
        single = "{expert}" in row.target
        for number in range(self.experts) if single else (None,):
            name = row.target.format(layer=layer, expert=number)
            parts = tuple(self._parts(row, layer, range(self.experts) if number is None else (number,)))
            source: Source = Zeros() if not parts else parts[0] if len(parts) == 1 else Stacked(parts)
            write = Write(name, self._fused_dtype(parts), shape, row.role, source)
            if "expert.down" in row.parts:
                self._note_compact(write, layer, number)
            yield write

    def _parts(self, row: Fused, layer: int, numbers: range | tuple[int, ...]) -> Iterator[Part]:
        for part in row.parts:
            owner, which = part.split(".")
            if owner == "ffn":
                spec = self.base.tensors[f"model.layers.{layer}.{self.ffn[which]}.weight"]
                yield Scaled(spec, row.factor) if row.factor != 1 else Copy(spec)
        for number in numbers:
            for part in row.parts:
                owner, which = part.split(".")
                if owner == "expert":
                    yield self._small(layer, which, number)

    def _fused_dtype(self, parts: tuple[Part, ...]) -> str:
        """That of the base's tensors where they are all alike, else of most of the base."""
        of = {spec.dtype for part in parts for spec in reads(part) if spec.path != self.saved.weights}
        return self.asked or (of.pop() if len(of) == 1 else self.main)

    def _note_compact(self, write: Write, layer: int, number: int | None) -> None:
        for each in range(self.experts) if number is None else (number,):
            added = self._delta(write.name, write.dtype, layer, each)
            self._found.append(Change(layer, each, added, Zeros(), write.name, index=each if number is None else None))

    def compact_config(self, target: Compact) -> dict[str, Any]:
        """Return the config of a mixture with a shared expert."""
        head_dim = self.matched.config["head_dim"]
        quantities = {
            "E": self.experts, "top_k": self.top_k, "M": self.saved.rank, "F": self.matched.sizes["F"],
            "scale": head_dim**-0.5,
        }  # fmt: skip
        return self._with_dtype(target.config(self.matched, quantities))


def _side_files(base: Path, adapter: Path) -> dict[str, Path]:
    """The tokenizer and chat template that the adapter was trained with, else the base's; the base's generation."""
    names = (*TOKENIZER_FILES, *CHAT_TEMPLATE_FILES)
    files = present_files(adapter, names)
    if not any(path.name in TOKENIZER_FILES for path in files):
        files = present_files(base, names)
    return {path.name: path for path in (*files, *present_files(base, (GENERATION_FILE,)))}
