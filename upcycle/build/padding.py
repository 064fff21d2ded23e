"""Widens experts by neurons that are zero: what they compute stays the same, and grouped_mm runs them."""

from upcycle.build.experts import Experts, Ffn
from upcycle.plan.sources import Blank, Columns, Part, Stacked


def padded(experts: Experts, hidden: int, multiple: int) -> Experts:
    """Return the experts with zero neurons appended until their width is a multiple of `multiple`; a shared one too.

    A neuron of zeros gives act(0) * 0 = 0 with a gate, and its column of the down projection is zero in any case.
    """
    ffns = dict.fromkeys(experts.ffns)  # copies are one object: widened once
    made = {ffn: _padded(ffn, hidden, -(-ffn.width // multiple) * multiple) for ffn in ffns}
    shared = experts.shared and _padded(experts.shared, hidden, -(-experts.shared.width // multiple) * multiple)
    return Experts(tuple(made[ffn] for ffn in experts.ffns), shared, experts.inexact)


def _padded(ffn: Ffn, hidden: int, width: int) -> Ffn:
    if width == ffn.width:
        return ffn
    blank = Blank((width - ffn.width) * hidden)

    def change(matrix: str, part: Part) -> Part:
        return Columns((part, blank), rows=hidden) if matrix == "down" else Stacked((part, blank))

    return ffn.changed(change, width)
