"""Merges IA3 experts: each becomes the dense FFN whose neurons are scaled by the expert's vector (2205.05638)."""

from upcycle.build.adapter_experts import AdapterExperts
from upcycle.build.experts import Experts, Ffn, Slot
from upcycle.plan.sources import Copy, Part, RowScaled


def ia3(ffn: Ffn, slot: Slot, asked: AdapterExperts) -> Experts:
    """Return experts with `(1 + v_i)` on the rows of the up projection."""

    def scaled(expert: int) -> Ffn:
        def change(matrix: str, part: Part) -> Part:
            if matrix != "up" or not isinstance(part, Copy):
                return part
            return RowScaled(part.tensor, asked.expert(slot.layer, "scale", expert))

        return ffn.changed(change)

    return Experts(tuple(map(scaled, range(asked.experts[slot.layer]))))
