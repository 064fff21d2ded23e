"""Reads the experts of an adapter as data: its config and the headers of its tensors, held against the base.

Shapes: E experts of a layer, D hidden, F intermediate, R rank (or the width of a bottleneck).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from upcycle.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXPERTS, Adapter, open_adapter
from upcycle.checkpoint.header import TensorSpec, rows_of
from upcycle.checkpoint.strict_json import is_finite_number
from upcycle.errors import CheckpointError
from upcycle.families.base import AdapterBase
from upcycle.families.dense.dense import Modules
from upcycle.families.match import FLOATS

Kind = Literal["lora", "bottleneck", "pesc", "ia3"]

PEFT_PREFIX = "base_model.model."
"""What the names in an adapter's file have before those of the model."""

_EXPERTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "lora": {
        "gate_A": ("A", "R", "D"), "gate_B": ("E", "F", "R"), "up_A": ("A", "R", "D"), "up_B": ("E", "F", "R"),
        "down_A": ("A", "R", "F"), "down_B": ("E", "D", "R"),
    },
    "bottleneck": {"gate_proj": ("E", "R", "D"), "up_proj": ("E", "R", "D"), "down_proj": ("E", "D", "R")},
    "pesc": {"down_proj": ("E", "R", "D"), "up_proj": ("E", "D", "R")},
    "ia3": {"scale": ("E", "F")},
}  # fmt: skip
"""Tensors of one layer's experts; A is 1 where experts share their A matrices, else E. Without a gate there is none of
its tensors."""


@dataclass(frozen=True)
class AdapterExperts:
    """Experts of an adapter on disk, whose tensors fit its base."""

    adapter: Adapter
    base: AdapterBase
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

    def router(self, layer: int) -> TensorSpec:
        """Return the router `(E, D)` of a layer."""
        return self.tensors[router_name(self.base, layer)]

    def expert(self, layer: int, name: str, number: int) -> TensorSpec:
        """Return one expert's part of a tensor of all experts, such as gate_proj `(E, R, D)`: where its bytes lie."""
        return slice_of(self.tensors[expert_name(self.base, layer, name)], number)

    def update(self, tensor: str) -> tuple[TensorSpec, TensorSpec] | None:
        """Return A and B of the LoRA on the linear layer whose weight the base calls `tensor`, or None."""
        found = [self.tensors.get(name) for name in update_names(tensor.removesuffix(".weight"))]
        return (found[0], found[1]) if found[0] and found[1] else None


def slice_of(spec: TensorSpec, number: int) -> TensorSpec:
    """Return the part of a tensor at index `number` of its first axis; an axis of length 1 is there for all."""
    index = number if spec.shape[0] > 1 else 0
    return replace(rows_of(spec, index, index + 1), shape=spec.shape[1:])


def open_experts(directory: Path, base: AdapterBase) -> AdapterExperts:
    """Read the adapter in `directory` and hold it against its base.

    Raises CheckpointError when a field or a tensor is missing, of another shape, or not accounted for.
    """
    adapter = open_adapter(directory)
    saved = AdapterExperts(adapter, base, **_fields(adapter.config, directory / ADAPTER_CONFIG))
    _check_names(adapter, base.modules)
    if len(saved.experts) != base.layers:
        raise CheckpointError(
            "the adapter is of another model",
            where=directory,
            found=f"{len(saved.experts)} layers",
            expected=f"{base.layers}, as the base has",
        )
    _check_tensors(saved)
    return saved


def _check_names(adapter: Adapter, names: Modules) -> None:
    """The modules that the adapter names are those that its kind of model has: others would be computed elsewhere."""
    own: dict[str, Any] = {"ffn": names.ffn, "attention": list(names.attention)}
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
        **{name: is_finite_number(config.get(name)) for name in ("scaling", "attention_scaling")},
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


def _check_tensors(saved: AdapterExperts) -> None:
    tensors = saved.tensors
    expected = dict(_expected(saved))
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


def _expected(saved: AdapterExperts) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor that the adapter has, with its shape."""
    base = saved.base
    for layer, count in enumerate(saved.experts):
        sizes = {"D": base.hidden, "F": base.width, "R": saved.rank, "E": count, "A": 1 if saved.shared_a else count}
        if count:
            yield router_name(base, layer), (count, sizes["D"])
            for name, letters in _EXPERTS[saved.kind].items():
                if base.modules.gated or not name.startswith("gate_"):
                    yield expert_name(base, layer, name), tuple(sizes[letter] for letter in letters)
        for module in base.modules.attention if saved.attention_rank else ():
            out, into = base.shapes[module]
            a, b = update_names(base.module(layer, module))
            yield a, (saved.attention_rank, into)
            yield b, (out, saved.attention_rank)


def router_name(base: AdapterBase, layer: int) -> str:
    """Return the name of a layer's router in an adapter's file."""
    return f"{PEFT_PREFIX}{base.module(layer, base.modules.block)}.upcycle_router.weight"


def expert_name(base: AdapterBase, layer: int, name: str) -> str:
    """Return the name of a tensor of a layer's experts in an adapter's file."""
    return f"{PEFT_PREFIX}{base.module(layer, base.modules.block)}.upcycle_experts.{name}"


def update_names(module: str) -> tuple[str, str]:
    """Return the names of A and B of the LoRA on a linear layer in an adapter's file."""
    stem = f"{PEFT_PREFIX}{module}.upcycle_lora."
    return stem + "lora_A", stem + "lora_B"
