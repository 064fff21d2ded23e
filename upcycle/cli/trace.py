"""Draws the course of a figure as one line of text."""

from math import isfinite

BARS = "▁▂▃▄▅▆▇█"

LENGTH = 32
"""Characters of a line at most."""

SMOOTHING = 0.05
"""Weight of a new value in the smoothed one, which follows the last 20 or so."""


class Trace:
    """A figure from the beginning of a run to its end, in bounded memory.

    Where there are twice as many values as a line has characters, neighbours are joined and each stands for twice as
    many.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.last = self.smooth = 0.0
        self._means: list[float] = []
        self._every, self._held, self._count = 1, 0, 0

    def add(self, value: float) -> None:
        """Take in the next value, if it is a number."""
        if not isfinite(value):
            return
        self.last, self._count = value, self._count + 1
        self.smooth += (value - self.smooth) * max(SMOOTHING, 1 / self._count)
        if self._held in (0, self._every):
            self._means.append(value)
            self._held = 1
        else:
            self._held += 1
            self._means[-1] += (value - self._means[-1]) / self._held
        if len(self._means) == 2 * LENGTH and self._held == self._every:
            self._means = [(a + b) / 2 for a, b in zip(self._means[::2], self._means[1::2], strict=True)]
            self._every, self._held = 2 * self._every, 2 * self._every

    @property
    def values(self) -> list[float]:
        """Return at most as many values as a line has characters."""
        if len(self._means) <= LENGTH:
            return list(self._means)
        pairs = (self._means[at : at + 2] for at in range(0, len(self._means), 2))
        return [sum(pair) / len(pair) for pair in pairs]


def sparkline(values: list[float]) -> str:
    """Return values as a line of bars, the least as the lowest and the largest as the highest."""
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1)) if span else 0] for value in values)
