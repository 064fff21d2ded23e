"""Computes the random numbers of the data order: each is a function of the seed, its purpose and its own number.

So there is no state to save, and all processes compute the same order. What Philox puts out is part of its definition,
unlike what numpy makes of it, which may change from release to release.
"""

from collections.abc import Callable

from numpy.random import Philox

RANGE = 2**64
"""A draw is a whole number from 0 up to this, which is excluded."""

SOURCE, SHUFFLE, HELD_OUT = 1, 2, 3
"""Purposes of draws: which source is next, which block of a buffer, which record is held out."""


def draw(seed: int, purpose: int, stream: int, number: int) -> int:
    """Return draw `number` of a stream, even over 0 to 2**64 - 1."""
    return int(Philox(key=[seed, purpose], counter=[number, stream, 0, 0]).random_raw())


def held_out(seed: int, source: int, fraction: float) -> Callable[[int], bool]:
    """Return a function that says of a record's number whether it is held out, for a share `fraction` of them."""
    limit = int(fraction * RANGE)
    return lambda unit: limit > 0 and draw(seed, HELD_OUT, source, unit) < limit
