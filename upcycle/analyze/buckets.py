"""Thins out a long series: keeps means and ranges over a bounded number of equal stretches of steps."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Buckets:
    """The mean and the range of each figure over stretches of rows.

    A stretch begins as one row. Where `limit` stretches are full, neighbours are joined and each is twice as long, so
    that memory depends on the limit alone and any number of rows ends as `limit / 2` to `limit` stretches. NaN is no
    figure: it counts nowhere.
    """

    def __init__(self, width: int, limit: int) -> None:
        """Take rows of `width` figures; `limit` is even."""
        self.every = 1
        """Rows of a stretch; the last one may have fewer."""
        self._limit, self._stretches, self._rows = limit, 0, 0
        self._sum = np.zeros((limit, width))
        self._count = np.zeros((limit, width), dtype=np.int64)
        self._low, self._high = np.full((limit, width), np.inf), np.full((limit, width), -np.inf)

    def add(self, row: Floats) -> None:
        """Take in one more row."""
        if self._rows == self._stretches * self.every:
            if self._stretches == self._limit:
                self._join()
            self._stretches += 1
        last, known = self._stretches - 1, ~np.isnan(row)
        np.add(self._sum[last], row, out=self._sum[last], where=known)
        self._count[last] += known
        np.fmin(self._low[last], row, out=self._low[last])
        np.fmax(self._high[last], row, out=self._high[last])
        self._rows += 1

    @property
    def mean(self) -> Floats:
        """Return the means, one row for each stretch; NaN where there was no figure."""
        count = self._count[: self._stretches]
        return np.where(count > 0, self._sum[: self._stretches] / np.maximum(count, 1), np.nan)

    @property
    def low(self) -> Floats:
        """Return the least figure of each stretch."""
        return self._or_nan(self._low)

    @property
    def high(self) -> Floats:
        """Return the largest figure of each stretch."""
        return self._or_nan(self._high)

    def _or_nan(self, values: Floats) -> Floats:
        return np.where(self._count[: self._stretches] > 0, values[: self._stretches], np.nan)

    def _join(self) -> None:
        half = self._limit // 2
        for values, join, empty in (
            (self._sum, np.add, 0), (self._count, np.add, 0), (self._low, np.minimum, np.inf),
            (self._high, np.maximum, -np.inf),
        ):  # fmt: skip
            values[:half] = join(values[0::2], values[1::2])
            values[half:] = empty
        self._stretches, self.every = half, 2 * self.every
