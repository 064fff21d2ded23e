"""A LoRA's updates, each at its place in the dense model: which layer, which linear layer, and whether it fits.

Shapes: R rank, X inputs, Y outputs.
"""

import re
from collections.abc import Mapping, Sequence

from upcycle.adapt.lora_files import Delta, Lora
from upcycle.errors import InputError
from upcycle.families.base import AdapterBase

Placed = Mapping[tuple[int, str], Delta]
"""A LoRA's updates by layer and linear layer, their scale folded into B."""


def place_updates(lora: Lora, base: AdapterBase) -> Placed:
    """Find every update's place in the base; raise InputError for one that has none."""
    layer_of = re.escape(base.layer).replace(r"\{layer\}", "(0|[1-9][0-9]{0,8})")
    named = re.compile(rf"{layer_of}\.(.+)")
    result: dict[tuple[int, str], Delta] = {}
    for module, delta in lora.deltas.items():
        match = named.fullmatch(module)
        if match is None or match[2] not in base.shapes:
            raise InputError(
                f"updates {module}, which is no linear layer of an FFN or an attention",
                where=lora.place,
                expected=", ".join(base.shapes),
                hint="train the LoRA without it, or merge it into a model and attach to that",
            )
        layer, name = int(match[1]), match[2]
        if layer >= base.layers:
            raise InputError(
                "the LoRA was made for another base", where=lora.place, found=f"updates of layer {layer}",
                expected=f"layers 0 to {base.layers - 1}", hint=_said_base(lora),
            )  # fmt: skip
        outputs, inputs = base.shapes[name]
        expected = ((delta.rank, inputs), (outputs, delta.rank))
        found = (tuple(delta.A_RX.shape), tuple(delta.B_YR.shape))
        if found != expected:
            raise InputError(
                f"the LoRA was made for another base: shapes of A and B of {module}", where=lora.place,
                found=f"{found[0]} and {found[1]}", expected=f"{expected[0]} and {expected[1]}", hint=_said_base(lora),
            )  # fmt: skip
        result[layer, name] = _folded(module, delta, lora)
    return result


def _folded(module: str, delta: Delta, lora: Lora) -> Delta:
    B_YR = delta.B_YR * delta.scale
    if not B_YR.isfinite().all():
        raise InputError(f"the update of {module} is too large for float32", where=lora.place,
                         found=f"a scale of {delta.scale:g}")  # fmt: skip
    return Delta(delta.A_RX, B_YR, 1.0)


def _said_base(lora: Lora) -> str | None:
    return f"the adapter names {ascii(lora.base)[:120]} as its base" if lora.base else None


def leaves_of(deltas: Placed, base: AdapterBase, among: Sequence[str] | None = None) -> str:
    """What a LoRA updates, as people say it: `q_proj, v_proj`."""
    found = {name for _, name in deltas}
    return ", ".join(leaf(name) for name in base.shapes if name in found and (among is None or name in among))


def leaf(name: str) -> str:
    """Return the last part of a module's name, by which people call it."""
    return name.rpartition(".")[2]
