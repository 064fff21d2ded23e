"""Few combinations instead of all: every two values of different axes meet in one of them."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return rows of a value of each axis, chosen so that each pair of values of two axes is in a row at least.

    Greedy: the next row is the one with the most pairs that no earlier row has. 8 x 4 x 3 values: 32 rows of 96.
    """
    rows = list(product(*(range(len(axis)) for axis in axes)))
    missing = {pair for row in rows for pair in _pairs(row)}
    chosen: list[tuple[Any, ...]] = []
    while missing:
        best = max(rows, key=lambda row: len(missing & _pairs(row)))
        missing -= _pairs(best)
        chosen.append(tuple(axis[place] for axis, place in zip(axes, best, strict=True)))
    return chosen


def _pairs(row: Sequence[int]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    return set(combinations(enumerate(row), 2))
