"""Makes experts of existing LoRA adapters: each LoRA's update of the FFN becomes one expert, its scale folded into B.

| a LoRA that | becomes |
|---|---|
| updates some of gate, up and down | zeros for the others |
| has a smaller rank than others | zero rows of A and columns of B; no training ever moves them, as both are zero |
| leaves a layer as it is | an expert that is the base there |
| updates the attention | what `attention` says, for attention has no experts |

A layer whose FFN no LoRA updates has no experts. A LoRA that updates no FFN at all is refused.

Shapes: E experts, R rank, X inputs, Y outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch
from torch import Tensor
from torch.nn.functional import pad

from upcycle.adapt.lora_files import Delta, Lora
from upcycle.adapt.placed import Placed, leaf, leaves_of, place_updates
from upcycle.build.adapter_experts import expert_name, update_names
from upcycle.errors import InputError, RequestError
from upcycle.families.base import AdapterBase
from upcycle.message import listed, quoted
from upcycle.requests.attach import AttentionDeltas


@dataclass(frozen=True)
class Composed:
    """Experts made of LoRAs; their tensors have the names that an adapter's file gives them."""

    base: AdapterBase
    experts: int
    per_layer: tuple[int, ...]  # experts of every layer: all, or none
    rank: int
    attention_rank: int  # 0: no LoRA on the attention
    tensors: Mapping[str, Tensor]  # float32; their scaling is 1
    notes: tuple[str, ...]  # what a user should know of it

    def layer(self, index: int) -> dict[str, Tensor]:
        """Return the experts of one layer by their short names, `gate_A` to `down_B`."""
        prefix = expert_name(self.base, index, "")
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def compose(
    loras: Sequence[Lora],
    base: AdapterBase,
    *,
    attention: AttentionDeltas = "refuse",
    shared_a: bool = False,
    called: str | None = None,
) -> Composed:
    """Make experts of LoRAs, in their order, for a dense model.

    `attention` is what becomes of updates of the attention: the LoRAs that have them are refused, or the updates are
    left out, or one update is made that is their mean over all LoRAs or their sum. `shared_a` keeps one A for all
    experts, which takes LoRAs that have the same. `called` is what the user calls the model: only to note when a
    LoRA says that it was made for another.

    Raises InputError for LoRAs that do not fit the model or one another.
    """
    if not loras:
        raise RequestError("no LoRA to make experts of", option="from_lora")
    placed = [place_updates(lora, base) for lora in loras]
    _refuse_without_ffn(loras, placed, base)
    if attention == "refuse":
        _refuse_attention(loras, placed, base)
    if shared_a:
        _check_shared(loras, placed, base)
    per_layer = tuple(
        len(loras) if any((layer, name) in deltas for deltas in placed for name in base.modules.linear) else 0
        for layer in range(base.layers)
    )
    rank = max(delta.rank for deltas in placed for (_, name), delta in deltas.items() if name in base.modules.linear)
    tensors = _expert_tensors(placed, base, per_layer, rank, shared_a)
    attention_rank, attention_tensors = _attention_tensors(placed, base, attention)
    tensors.update(attention_tensors)
    notes = (
        *_base_notes(loras, called),
        *_expert_notes(loras, placed, base, per_layer, rank),
        *_attention_notes(loras, placed, base, attention, attention_rank),
    )
    return Composed(base, len(loras), per_layer, rank, attention_rank, tensors, notes)


def _refuse_without_ffn(loras: Sequence[Lora], placed: Sequence[Placed], base: AdapterBase) -> None:
    without = [
        f"{lora} updates {leaves_of(deltas, base)}"
        for lora, deltas in zip(loras, placed, strict=True)
        if not any(name in base.modules.linear for _, name in deltas)
    ]
    if without:
        raise InputError(
            "LoRAs that do not update the FFN cannot be experts",
            found="; ".join(without),
            expected=f"updates of {', '.join(map(leaf, base.modules.linear))}",
            hint="peft's own target_modules are q_proj and v_proj for most models: train with all-linear, "
            "or leave these LoRAs out",
        )


def _refuse_attention(loras: Sequence[Lora], placed: Sequence[Placed], base: AdapterBase) -> None:
    having = [
        f"{lora} updates {leaves}"
        for lora, deltas in zip(loras, placed, strict=True)
        if (leaves := leaves_of(deltas, base, base.modules.attention))
    ]
    if having:
        raise InputError(
            "LoRAs update the attention, which has no experts",
            found="; ".join(having),
            hint="--attention-deltas drop leaves these updates out, mean or sum makes one of them that all tokens use",
        )


def _check_shared(loras: Sequence[Lora], placed: Sequence[Placed], base: AdapterBase) -> None:
    for layer in range(base.layers):
        for name in base.modules.linear:
            having = [(lora, deltas[layer, name]) for lora, deltas in zip(loras, placed, strict=True)
                      if (layer, name) in deltas]  # fmt: skip
            if len({delta.rank for _, delta in having}) > 1:
                raise InputError(
                    f"rank mismatch with shared A: {name} of layer {layer}",
                    found="; ".join(f"{lora} has rank {delta.rank}" for lora, delta in having),
                    expected="one rank",
                    hint="without --shared-a every expert has an A of its own, and ranks may differ",
                )
            other = next((lora for lora, delta in having if not torch.equal(delta.A_RX, having[0][1].A_RX)), None)
            if other is not None:
                raise InputError(
                    f"the LoRAs do not share their A: {name} of layer {layer}",
                    found=f"{having[0][0]} and {other} differ",
                    hint="without --shared-a every expert has an A of its own",
                )


def _expert_tensors(
    placed: Sequence[Placed], base: AdapterBase, per_layer: Sequence[int], rank: int, shared_a: bool
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for layer in (layer for layer, experts in enumerate(per_layer) if experts):
        for part, (name, half) in base.modules.matrices.items():
            outputs, inputs = base.shapes[name]
            zero = Delta(torch.zeros(0, inputs), torch.zeros(outputs, 0), 1.0)
            deltas = [_half(deltas.get((layer, name), zero), half) for deltas in placed]
            readers = [max(deltas, key=lambda delta: delta.rank)] if shared_a else deltas
            a, b = (expert_name(base, layer, f"{part}_{letter}") for letter in "AB")
            tensors[a] = torch.stack([_more_rows(delta.A_RX, rank) for delta in readers])
            tensors[b] = torch.stack([_more_columns(delta.B_YR, rank) for delta in deltas])
    return tensors


def _half(delta: Delta, half: int | None) -> Delta:
    """Return what an update of a fused matrix is to one half of its rows: the same A, half of B."""
    return delta if half is None else Delta(delta.A_RX, delta.B_YR.chunk(2)[half], delta.scale)


def _attention_tensors(
    placed: Sequence[Placed], base: AdapterBase, policy: AttentionDeltas
) -> tuple[int, dict[str, Tensor]]:
    """Return the rank and the tensors of one update that is the mean or sum: ranks one after the other."""
    places = [(layer, name) for layer in range(base.layers) for name in base.modules.attention]
    having = {place: [deltas[place] for deltas in placed if place in deltas] for place in places}
    rank = max((sum(delta.rank for delta in deltas) for deltas in having.values()), default=0)
    if policy not in ("mean", "sum") or not rank:
        return 0, {}
    share = 1 / len(placed) if policy == "mean" else 1.0
    tensors: dict[str, Tensor] = {}
    for (layer, name), deltas in having.items():
        outputs, inputs = base.shapes[name]
        a, b = update_names(base.module(layer, name))
        A_RX = torch.cat([torch.zeros(0, inputs), *(delta.A_RX for delta in deltas)])
        B_YR = torch.cat([torch.zeros(outputs, 0), *(delta.B_YR * share for delta in deltas)], dim=1)
        tensors[a], tensors[b] = _more_rows(A_RX, rank), _more_columns(B_YR, rank)
    return rank, tensors


def _more_rows(A_RX: Tensor, rank: int) -> Tensor:
    return pad(A_RX, (0, 0, 0, rank - len(A_RX)))


def _more_columns(B_YR: Tensor, rank: int) -> Tensor:
    return pad(B_YR, (0, rank - B_YR.shape[1]))


def _base_notes(loras: Sequence[Lora], called: str | None) -> list[str]:
    if not called:
        return []
    return [
        f"{lora} names {quoted(lora.base, 120)} as its base, not {quoted(called, 120)}; its shapes fit"
        for lora in loras
        if lora.base and _model_name(lora.base) != _model_name(called)
    ]


def _model_name(place: str) -> str:
    """Return the last part of a path or Hub id; for a directory in the Hub's cache, the repository's name."""
    parts = PurePath(place).parts
    cached = [part.rpartition("--")[2] for part in parts if part.startswith("models--")]
    return (cached or list(parts) or [place])[-1].lower()


def _expert_notes(
    loras: Sequence[Lora], placed: Sequence[Placed], base: AdapterBase, per_layer: Sequence[int], rank: int
) -> list[str]:
    notes = []
    bare = [layer for layer, experts in enumerate(per_layer) if not experts]
    if bare:
        notes.append(f"no LoRA updates the FFN of {_numbers(bare)}: no experts there")
    ffn = base.modules.linear
    smaller = sorted({delta.rank for deltas in placed for (_, name), delta in deltas.items() if name in ffn})
    if len(smaller) > 1:
        notes.append(f"the LoRAs' ranks are {', '.join(map(str, smaller))}: padded with zeros to {rank}")
    for lora, deltas in zip(loras, placed, strict=True):
        own = {place: delta for place, delta in deltas.items() if place[1] in ffn}
        if not any(delta.A_RX.any() and delta.B_YR.any() for delta in own.values()):
            notes.append(f"{lora} has an update that is zero: its expert is the base")
        unmoved = {name for name in ffn if not any(name == place[1] for place in own)}
        if unmoved:
            notes.append(f"{lora} updates {leaves_of(own, base)} only: the rest of its experts is the base")
        absent = [layer for layer, experts in enumerate(per_layer)
                  if experts and not any(layer == place[0] for place in own)]  # fmt: skip
        if absent:
            notes.append(f"{lora} does not update the FFN of {_numbers(absent)}: its expert is the base there")
    return notes


def _attention_notes(
    loras: Sequence[Lora], placed: Sequence[Placed], base: AdapterBase, policy: AttentionDeltas, rank: int
) -> list[str]:
    if policy == "drop":
        return [
            f"{lora}: its updates of {leaves} are left out, so its expert is not all that was trained"
            for lora, deltas in zip(loras, placed, strict=True)
            if (leaves := leaves_of(deltas, base, base.modules.attention))
        ]
    if not rank:
        return []
    return [
        f"the {policy} of the updates of the attention over {len(loras)} LoRAs has rank {rank} and is used by every "
        f"token, whichever experts it chooses"
    ]


def _numbers(layers: Sequence[int]) -> str:
    """`layer 3`, `layers 0, 1, 2, 3 and 24 more`."""
    return f"layer{'s' if len(layers) > 1 else ''} {listed(layers)}"
