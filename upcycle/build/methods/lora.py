"""Merges LoRA experts: each becomes the dense FFN with its update added to all three matrices (2106.09685, eq. 3)."""

from upcycle.build.adapter_experts import AdapterExperts
from upcycle.build.experts import Experts, Ffn, Slot
from upcycle.plan.sources import Copy, LowRank, Part


def lora(ffn: Ffn, slot: Slot, asked: AdapterExperts) -> Experts:
    """Return experts `W + s B_i A_i`."""

    def adapted(expert: int) -> Ffn:
        def change(matrix: str, part: Part) -> Part:
            assert isinstance(part, Copy)  # noqa: S101 - a dense FFN is copies of its tensors
            a, b = (asked.expert(slot.layer, f"{matrix}_{letter}", expert) for letter in "AB")
            return LowRank(part.tensor, a, b, asked.scaling)

        return ffn.changed(change)

    return Experts(tuple(map(adapted, range(asked.experts[slot.layer]))))
