"""An adapter directory as data: its config and the headers of its tensors, held against the base; no torch, no peft.

Shapes: E experts of a layer, D hidden, F intermediate, R rank (or the width of a bottleneck).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from upcycle.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXPERTS, Adapter, open_adapter
from upcycle.checkpoint.header import TensorSpec
from upcycle.errors import CheckpointError
from upcycle.families.family import Names
from upcycle.families.match import FLOATS, Match

Kind = Literal["lora", "bottleneck", "pesc", "ia3"]

_PREFIX = "base_model.model.model.layers.{layer}."
_EXPERTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "lora": {
        "gate_A": ("A", "R", "D"), "gate_B": ("E", "F", "R"), "up_A": ("A", "R", "D"), "up_B": ("E", "F", "R"),
        "down_A": ("A", "R", "F"), "down_B": ("E", "D", "R"),
    },
    "bottleneck": {"gate_proj": ("E", "R", "D"), "up_proj": ("E", "R", "D"), "down_proj": ("E", "D", "R")},
    "pesc": {"down_proj": ("E", "R", "D"), "up_proj": ("E", "D", "R")},
    "ia3": {"scale": ("E", "F")},
}  # fmt: skip
"""Tensors of one layer's experts; A is 1 where experts share their A matrices, else E."""


@dataclass(frozen=True)
class Saved:
    """An adapter on disk whose tensors fit its base."""

    adapter: Adapter
    kind: Kind
    experts: tuple[int, ...]  # of each layer
    top_k: int
    routing: Literal["topk", "dense", "top1"]
    rank: int
    scaling: float
    shared_a: bool
    attention_rank: int
    attention_scaling: float

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self.adapter.directory

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Its tensors by name."""
        return self.adapter.tensors

    @property
    def weights(self) -> Path:
        """The file that holds them."""
        return self.directory / ADAPTER_WEIGHTS

    def router(self, layer: int, block: str) -> TensorSpec:
        """Return the router `(E, D)` of a layer; `block` names the FFN."""
        return self.tensors[_router(layer, block)]

    def stacked(self, layer: int, block: str, name: str) -> TensorSpec:
        """Return a tensor of all experts of a layer, such as gate_proj `(E, R, D)`."""
        return self.tensors[_expert(layer, block, name)]

    def expert(self, layer: int, block: str, name: str, number: int) -> TensorSpec:
        """Return one expert's part of such a tensor: where its bytes are in the file."""
        return slice_of(self.stacked(layer, block, name), number)

    def attention(self, layer: int, module: str) -> tuple[TensorSpec, TensorSpec] | None:
        """Return A and B of the LoRA on a linear layer of the attention, or None when it has none."""
        found = [self.tensors.get(name) for name in _attention(layer, module)]
        return (found[0], found[1]) if found[0] and found[1] else None


def slice_of(spec: TensorSpec, number: int) -> TensorSpec:
    """Return the part of a tensor at index `number` of its first axis; an axis of length 1 is there for all."""
    count = spec.shape[0]
    nbytes = spec.nbytes // count
    offset = spec.offset + (number if count > 1 else 0) * nbytes
    return replace(spec, shape=spec.shape[1:], offset=offset, nbytes=nbytes)


def open_saved(directory: Path, matched: Match) -> Saved:
    """Read the adapter in `directory` and hold it against its base.

    Raises CheckpointError when a field or a tensor is missing, of another shape, or not accounted for.
    """
    adapter = open_adapter(directory)
    saved = Saved(adapter=adapter, **_fields(adapter.config, directory / ADAPTER_CONFIG))
    _check_names(adapter, matched.family.names)
    if len(saved.experts) != matched.sizes["L"]:
        raise CheckpointError(
            "the adapter is of another model",
            where=directory,
            found=f"{len(saved.experts)} layers",
            expected=f"{matched.sizes['L']}, as the base has",
        )
    _check_tensors(saved, matched)
    return saved


def _check_names(adapter: Adapter, names: Names) -> None:
    """The modules that the adapter names are those that its kind of model has: others would be computed elsewhere."""
    own = {"ffn": {part: getattr(names, part) for part in ("block", "gate", "up", "down")}}
    own["attention"] = list(names.attention)  # type: ignore[assignment]
    for field, expected in own.items():
        used = field == "ffn" or adapter.config.get("attention_rank")
        found = adapter.config.get(field) if used else None
        if found not in (None, expected):
            raise CheckpointError(
                f"names other modules than the base has ({field})", where=adapter.directory / ADAPTER_CONFIG,
                found=ascii(found)[:80], expected=expected,
            )  # fmt: skip


def _fields(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    if config.get("peft_type") != EXPERTS:
        raise CheckpointError(
            "is no adapter with experts",
            where=where,
            found=f"peft_type {ascii(config.get('peft_type'))[:40]}",
            expected=EXPERTS,
            hint="`upcycle attach` makes one",
        )
    counts = config.get("num_experts")
    sound = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts) and any(counts)
    fewest = min(count for count in counts if count) if sound and isinstance(counts, list) else 0
    good = {
        "expert_type": config.get("expert_type") in tuple(_EXPERTS),
        "num_experts": sound,
        "top_k": type(config.get("top_k")) is int and (not sound or 1 <= config["top_k"] <= fewest),
        "rank": type(config.get("rank")) is int and config["rank"] >= 1,
        "attention_rank": type(config.get("attention_rank")) is int and config["attention_rank"] >= 0,
        "routing": config.get("routing") in ("topk", "dense", "top1"),
        **{name: _is_finite(config.get(name)) for name in ("scaling", "attention_scaling")},
        "shared_a": type(config.get("shared_a")) is bool,
    }
    wrong = [f"{name} {ascii(config.get(name))[:40]}" for name, fine in good.items() if not fine]
    if wrong:
        raise CheckpointError("damaged adapter config", where=where, found=", ".join(wrong))
    same = ("top_k", "routing", "rank", "scaling", "shared_a", "attention_rank", "attention_scaling")
    return {
        **{name: config[name] for name in same},
        "kind": config["expert_type"],
        "experts": tuple(config["num_experts"]),
    }


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)


def _check_tensors(saved: Saved, matched: Match) -> None:
    tensors = saved.tensors
    expected = dict(_expected(saved, matched))
    missing = [name for name in expected if name not in tensors and not _left_out(name, tensors)]
    if missing:
        router = ": an adapter that lost its routers" if any(".upcycle_router." in name for name in missing) else ""
        raise CheckpointError(
            f"{len(missing)} tensors are missing{router}", where=saved.weights, expected=", ".join(missing[:3])
        )
    strange = [name for name in tensors if name not in expected]
    if strange:
        raise CheckpointError(
            f"{len(strange)} tensors are not of such an adapter", where=saved.weights, found=", ".join(strange[:3])
        )
    for name, spec in tensors.items():
        shape = expected[name]
        if spec.shape != shape or spec.dtype not in FLOATS:
            raise CheckpointError(
                f"tensor {name!r} does not fit the adapter's config and the base",
                where=spec.path,
                found=f"{spec.shape} in {spec.dtype}",
                expected=shape,
            )


def _left_out(name: str, tensors: Mapping[str, TensorSpec]) -> bool:
    """Whether `name` is of a LoRA that its linear layer need not have: neither of its two matrices is there."""
    stem, last = name[:-1], name[-1]
    return stem.endswith(".upcycle_lora.lora_") and stem + {"A": "B", "B": "A"}[last] not in tensors


def _expected(saved: Saved, matched: Match) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor that the adapter has, with its shape."""
    names = matched.family.names
    rows = {row.source: row.shape for row in matched.family.tensors if row.source}
    for layer, count in enumerate(saved.experts):
        sizes = {**matched.sizes, "R": saved.rank, "E": count, "A": 1 if saved.shared_a else count}
        if count:
            yield _router(layer, names.block), (count, sizes["D"])
            for name, letters in _EXPERTS[saved.kind].items():
                yield _expert(layer, names.block, name), tuple(sizes[letter] for letter in letters)
        for module in names.attention if saved.attention_rank else ():
            out, into = matched.shape(rows[f"model.layers.{{layer}}.{module}.weight"])
            a, b = _attention(layer, module)
            yield a, (saved.attention_rank, into)
            yield b, (out, saved.attention_rank)


def _router(layer: int, block: str) -> str:
    return f"{_PREFIX.format(layer=layer)}{block}.upcycle_router.weight"


def _expert(layer: int, block: str, name: str) -> str:
    return f"{_PREFIX.format(layer=layer)}{block}.upcycle_experts.{name}"


def _attention(layer: int, module: str) -> tuple[str, str]:
    stem = f"{_PREFIX.format(layer=layer)}{module}.upcycle_lora."
    return stem + "lora_A", stem + "lora_B"
