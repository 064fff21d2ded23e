"""Merges bottleneck experts, narrow FFNs beside the dense one: `y = FFN(x) + s sum_i w_i D_i(act(G_i x) * U_i x)`.

A target with a shared expert holds the dense FFN once. In any other, each expert is the dense FFN with the bottleneck's
neurons appended: since weights sum to one, the dense part counts once all the same.
"""

from upcycle.build.adapter_experts import AdapterExperts
from upcycle.build.experts import Experts, Ffn, Slot
from upcycle.plan.sources import Columns, Copy, Part, Scaled, Stacked


def bottleneck(ffn: Ffn, slot: Slot, asked: AdapterExperts) -> Experts:
    """Return narrow experts beside a shared one, or wide ones of `ffn.width + rank` neurons."""
    narrow = tuple(narrow_expert(slot.layer, expert, asked) for expert in range(asked.experts[slot.layer]))
    if slot.shared:
        return Experts(narrow, shared=ffn)
    return Experts(tuple(_joined(ffn, small, slot.hidden) for small in narrow))


def narrow_expert(layer: int, expert: int, asked: AdapterExperts) -> Ffn:
    """Return one expert by itself; its down projection takes the scaling."""
    gate, up, down = (asked.expert(layer, f"{matrix}_proj", expert) for matrix in ("gate", "up", "down"))
    scaled = Scaled(down, asked.scaling) if asked.scaling != 1 else Copy(down)
    return Ffn(Copy(gate), Copy(up), scaled, asked.rank)


def _joined(ffn: Ffn, small: Ffn, hidden: int) -> Ffn:
    """Return one FFN with the neurons of both."""
    added = dict(small.matrices())

    def change(matrix: str, part: Part) -> Part:
        both = (part, added[matrix])
        return Columns(both, rows=hidden) if matrix == "down" else Stacked(both)

    return ffn.changed(change, ffn.width + small.width)
