"""Shared experts, which every token uses beside the routed ones: `--shared`, and how the sum stays the dense FFN.

| word | the shared expert | the routed experts |
|---|---|---|
| zero | the dense FFN's gate and up projections, a down projection of zeros | as the method makes them |
| half | the dense FFN, its down projection halved | copies of it, halved likewise |
| dense | the dense FFN | narrow: some of its gate and up rows each, a down projection of zeros |

Routed weights sum to one, so `half` gives FFN/2 + FFN/2; halving is exact in floating point. Where a sigmoid gate
stands before the shared expert, the target's file makes up for it.
"""

from upcycle.build.experts import Experts, Ffn, Slot
from upcycle.checkpoint.header import rows_of
from upcycle.errors import RequestError
from upcycle.families.match import Match
from upcycle.families.pairs import pairs_of
from upcycle.plan.sources import Blank, Copy, Part, Scaled
from upcycle.requests import Conversion


def with_shared(made: Experts, ffn: Ffn, slot: Slot, asked: Conversion) -> Experts:
    """Return the experts of a layer with the shared expert that `--shared` asks for beside them.

    `made` is what the method has made of the dense FFN `ffn`.
    """
    if asked.shared == "zero":
        return Experts(made.ffns, ffn.without_output(slot.hidden), made.inexact)
    if asked.shared == "half":
        return Experts(tuple(map(_halved, made.ffns)), _halved(ffn), made.inexact)
    if asked.shared == "dense":
        width = asked.expert_width or ffn.width
        return Experts(tuple(_narrow(ffn, slot, number, width) for number in range(asked.experts)), ffn)
    return made


def check_shared(matched: Match, asked: Conversion) -> None:
    """Raise RequestError for a shared expert that the target does not have, or narrow experts that are none."""
    if asked.expert_width is not None and not 1 <= asked.expert_width < matched.sizes["F"]:
        raise RequestError(
            "--expert-width is not narrower than the dense FFN",
            found=asked.expert_width,
            expected=f"1 to {matched.sizes['F'] - 1}",
        )
    if asked.shared == "none":
        return
    if matched.target.has_shared:
        _check_width(matched, asked)
        return
    others = [
        f"--target {pair.target.model_type}"
        for pair in pairs_of(matched.dense.model_type)
        if pair.target.has_shared and pair.target is not matched.target
    ]
    raise RequestError(
        f"{matched.target.model_type} has no shared expert",
        found=f"--shared {asked.shared}",
        hint=" or ".join(others) or None,
    )


def _check_width(matched: Match, asked: Conversion) -> None:
    """Raise RequestError where the target's shared expert cannot be as wide as the dense FFN beside narrow experts."""
    target, width = matched.target, matched.sizes["F"]
    if asked.shared != "dense" or asked.expert_width is None or target.shared_like == "any":
        return
    if target.shared_like == "one":
        raise RequestError(
            f"the shared expert of {target.model_type} is as wide as the others", found="--shared dense",
            expected="--shared zero or half",
        )  # fmt: skip
    if width % asked.expert_width:
        raise RequestError(
            f"the shared expert of {target.model_type} is as wide as some others together", found=asked.expert_width,
            expected=f"a width that divides {width}", option="expert_width",
        )  # fmt: skip


def _halved(ffn: Ffn) -> Ffn:
    def change(matrix: str, part: Part) -> Part:
        if matrix != "down":
            return part
        assert isinstance(part, Copy)  # noqa: S101 - --shared half goes with no noise
        return Scaled(part.tensor, 0.5)

    return ffn.changed(change)


def _narrow(ffn: Ffn, slot: Slot, expert: int, width: int) -> Ffn:
    """Return an expert of `width` neurons that begin as some of the dense FFN's, others for each expert.

    Its output is zero until training moves its down projection, as a LoRA's is.
    """
    first = expert * width % ffn.width
    first = min(first, ffn.width - width)

    def change(matrix: str, part: Part) -> Part:
        if matrix == "down":
            return Blank(width * slot.hidden)
        assert isinstance(part, Copy)  # noqa: S101 - a dense FFN is copies of its tensors
        return Copy(rows_of(part.tensor, first, first + width))

    return ffn.changed(change, width)
