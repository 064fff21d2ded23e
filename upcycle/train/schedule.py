"""Learning-rate schedules: the share of the peak learning rate that each step gets.

With n = start + step + 1, steps counted from one, W warm-up steps and N = start + total steps in all, the warm-up gives
n / W. After it, x goes from 0 at the peak, step W, to 1 at step N:

| schedule | share of the peak |
|---|---|
| constant | 1 |
| cosine | `F + (1 - F) (1 + cos(pi x)) / 2`, floor F (1608.03983, eq. 5) |
| inverse-sqrt | `sqrt(k / max(n, k))`, k = W, or 10,000 without a warm-up; no floor (1910.10683, section 3.1.2) |
| wsd | 1, and over the last D steps `F + (1 - F) (1 - sqrt(y))`, y from 1 / D to 1 (2405.18392) |

Warm-up, stable, decay is the schedule of 2404.06395, whose decay is exponential; 1 - sqrt ends at its floor, and
2405.18392 found it better than a straight line.

`start` is the number of steps that an earlier run has made: all schedules are those of one run of start + total steps,
of which the last `total` are made now. So an upcycled model goes on where the inverse-sqrt schedule of its dense
ancestor stopped (2212.05055), with that run's k. With `start` = 0 the rate warms up again.
"""

from math import cos, pi, sqrt

from upcycle.requests.train import Schedule

TIMESCALE = 10_000
"""The k of inverse-sqrt without warm-up, that of 1910.10683."""


def learning_rate_factor(
    step: int, *, schedule: Schedule, warmup: int, total: int, floor: float, decay: int, start: int = 0
) -> float:
    """Return the share of the peak, 0 to 1, for `step`, which counts from 0 in a run of `total` steps.

    The first step of the peak is the last one of the warm-up. `floor` is a share of the peak. `decay` is for wsd: as
    many steps of it as come after the warm-up. There is no state to save: the factor depends on
    nothing but its arguments.
    """
    done = start + step + 1
    if done < warmup:
        return done / warmup
    last = start + total
    if schedule == "cosine":
        peak = max(warmup, 1)
        return _between(floor, (1 + cos(pi * _progress(done, peak, last))) / 2)
    if schedule == "inverse-sqrt":
        timescale = warmup or TIMESCALE
        return sqrt(timescale / max(done, timescale))
    if schedule == "wsd":
        return _between(floor, 1 - sqrt(_progress(done, max(last - decay, warmup), last)))
    return 1.0


def _progress(done: int, begin: int, end: int) -> float:
    """How far `done` is on the way from `begin` to `end`, 0 to 1."""
    return min(max(done - begin, 0) / max(end - begin, 1), 1.0)


def _between(floor: float, share: float) -> float:
    return floor + (1 - floor) * share
