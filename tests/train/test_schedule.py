"""Learning-rate schedules: golden values, and what holds for all of them."""

from itertools import pairwise
from math import sqrt
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upcycle.requests.train import Schedule
from upcycle.train.schedule import learning_rate_factor

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def factors(schedule: Schedule, **changes: Any) -> list[float]:
    """Every step's factor in a run of ten steps, three of them warm-up."""
    options = {"warmup": 3, "total": 10, "floor": 0.0, "decay": 4, **changes}
    return [learning_rate_factor(step, schedule=schedule, **options) for step in range(options["total"])]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warm_up_is_linear_and_ends_at_the_peak(schedule: Schedule) -> None:
    assert factors(schedule)[:3] == [1 / 3, 2 / 3, 1.0]
    assert factors(schedule, warmup=0)[0] == 1.0
    assert factors(schedule, warmup=1)[0] == 1.0


def test_cosine() -> None:
    # warm-up 2, so the peak is step 1, and four steps lead from there to the floor 0.2:
    # 0.2 + 0.8 * (1 + cos(k pi / 4)) / 2 = 0.6 + 0.4 cos: cos pi/4 = 0.7071, 0, -0.7071, -1
    expected = [0.5, 1.0, 0.6 + 0.4 * sqrt(0.5), 0.6, 0.6 - 0.4 * sqrt(0.5), 0.2]
    assert factors("cosine", warmup=2, total=6, floor=0.2) == pytest.approx(expected)


def test_inverse_sqrt() -> None:
    # k = 4: 1 until the fourth step, then sqrt(4 / n): n = 5, 6, 7, 8 and, at the sixteenth, 1/2
    values = factors("inverse-sqrt", warmup=4, total=16)
    assert values[3:8] == pytest.approx([1.0, sqrt(4 / 5), sqrt(4 / 6), sqrt(4 / 7), sqrt(1 / 2)])
    assert values[15] == 0.5


def test_inverse_sqrt_without_a_warm_up_has_the_timescale_of_t5() -> None:
    options: dict[str, Any] = {"schedule": "inverse-sqrt", "warmup": 0, "total": 1, "floor": 0.0, "decay": 0}
    assert learning_rate_factor(9_999, **options) == 1.0
    assert learning_rate_factor(39_999, **options) == 0.5  # sqrt(10,000 / 40,000)


def test_warm_up_stable_decay() -> None:
    # the last four steps: 1 - sqrt(1/4), 1 - sqrt(2/4), 1 - sqrt(3/4), 1 - sqrt(4/4), between floor 0.1 and 1
    decay = [0.1 + 0.9 * (1 - sqrt(part / 4)) for part in (1, 2, 3, 4)]
    assert factors("wsd", floor=0.1) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, *decay])


def test_a_decay_longer_than_there_are_steps_begins_at_the_peak() -> None:
    assert factors("wsd", decay=50) == factors("wsd", decay=7)
    assert factors("wsd", decay=0)[:9] == [1 / 3, 2 / 3, *[1.0] * 7]


def test_inverse_sqrt_goes_on_where_an_earlier_run_stopped() -> None:
    whole = factors("inverse-sqrt", total=30)
    assert factors("inverse-sqrt", total=20, start=10) == whole[10:]
    assert max(whole[10:]) < 1  # no second warm-up, no second peak


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("start", [2, 10])
def test_two_runs_are_one(schedule: Schedule, start: int) -> None:
    assert factors(schedule, total=30 - start, start=start) == factors(schedule, total=30)[start:]


STEPS = st.integers(0, 40)


@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup=STEPS,
    total=st.integers(1, 40),
    floor=st.floats(0, 1),
    decay=STEPS,
    start=STEPS,
)
def test_a_factor_is_a_share_and_falls_only_after_the_warm_up(
    schedule: Schedule, warmup: int, total: int, floor: float, decay: int, start: int
) -> None:
    values = factors(schedule, warmup=warmup, total=total, floor=floor, decay=decay, start=start)
    warm = max(warmup - start - 1, 0)  # steps below the peak
    assert all(0 <= value <= 1 for value in values)
    assert all(before < after for before, after in pairwise(values[: warm + 1]))
    assert all(before >= after for before, after in pairwise(values[warm:]))
    if schedule == "cosine" and start + total > max(warmup, 1):
        assert values[-1] == pytest.approx(floor, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_after_the_last_do_not_rise(schedule: Schedule) -> None:
    options: dict[str, Any] = {"schedule": schedule, "warmup": 3, "total": 10, "floor": 0.2, "decay": 4}
    last, later = learning_rate_factor(9, **options), learning_rate_factor(50, **options)
    assert later == last or (schedule == "inverse-sqrt" and 0 < later < last)
