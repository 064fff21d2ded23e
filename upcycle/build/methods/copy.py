"""Makes every expert a copy of the dense FFN (sparse upcycling, 2212.05055, section 2.1), with noise if asked for."""

from upcycle.build.experts import Experts, Ffn, Slot
from upcycle.plan.sources import Copy, Noise, Part
from upcycle.requests import Conversion


def copy(ffn: Ffn, slot: Slot, asked: Conversion) -> Experts:
    """Return `asked.experts` copies; noise is `N(0, (noise * s)^2)`, where `s` is the matrix's standard deviation."""
    if asked.noise == 0:
        return Experts((ffn,) * asked.experts)

    def noisy(expert: int) -> Ffn:
        def change(matrix: str, part: Part) -> Part:
            assert isinstance(part, Copy)  # noqa: S101 - a dense FFN is copies of its tensors
            return Noise(part.tensor, asked.noise, slot.key(expert, matrix))

        return ffn.changed(change)

    return Experts(
        tuple(map(noisy, range(asked.experts))),
        inexact=f"the experts have noise of {asked.noise:g} of each matrix's spread",
    )
