"""Alerts: every one fires where it should, once; steady noise raises none."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from upcycle.train.watch.alerts import ENOUGH, LEARNT, STILL, WINDOW, Watch, misplaced

EVEN = [0.25] * 4
Steps = Iterable[dict[str, Any]]


def metrics(step: int, *loads: list[float], **changes: Any) -> dict[str, Any]:
    """A step in which all is well, with some figures replaced; a dict goes into what is there."""
    made: dict[str, Any] = {
        "step": step, "loss": 3.0, "lr": {"router": 1e-4, "experts": 1e-4, "rest": 1e-4},
        "grad_norm": {"total": 1.0, "router": 0.1, "experts": 0.8, "rest": 0.5},
        "layers": [{"layer": layer, "load": load, "cosine": 0.98} for layer, load in enumerate(loads or (EVEN, EVEN))],
    }  # fmt: skip
    for name, value in changes.items():
        made[name] = {**made[name], **value} if isinstance(value, dict) else value
    return made


def alerts(steps: Steps) -> dict[int, list[str]]:
    """Step -> the alerts that it raised, through JSON as a file has them."""
    watch = Watch()
    seen = {one["step"]: watch.see(json.loads(json.dumps(one))) for one in steps}
    return {step: raised for step, raised in seen.items() if raised}


def the_one(raised: dict[int, list[str]], step: int) -> str:
    """The only alert, which came at `step`."""
    assert list(raised) == [step], raised
    (alert,) = raised[step]
    return alert


# -- no false alarm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_noise_raises_no_alarm(seed: int) -> None:
    """A healthy run of 3000 steps: a falling loss with noise, skewed gradient norms, loads that breathe."""
    draw = np.random.default_rng(seed)
    wave = np.linspace(0, 40, 3000)

    def healthy() -> Steps:
        for step in range(1, 3001):
            loads = [draw.dirichlet(40 * (1 + 0.3 * np.sin(wave[step - 1] + np.arange(8)))).tolist() for _ in range(3)]
            norm, falling = float(draw.lognormal(0, 0.4)), 2.5 + 2 * np.exp(-step / 400)
            yield metrics(
                step, *loads, loss=falling + 0.1 * float(draw.normal()),
                grad_norm={"total": norm, "router": 0.1 * norm},
                eval_loss=falling + 0.003 * float(draw.normal()) if step % 50 == 0 else None,
            )  # fmt: skip

    assert alerts(healthy()) == {}


def test_a_dense_model_has_no_layers() -> None:
    dense: dict[str, Any] = {"layers": [], "balance_loss": None, "grad_norm": {"total": 1.0}, "lr": {"rest": 1e-4}}
    watch = Watch()
    assert all(watch.see({"step": step, "loss": 3.0, **dense}) == [] for step in range(200))


def test_what_is_missing_or_unknown_is_no_trouble() -> None:
    watch = Watch()
    for step in range(100):
        assert watch.see({"step": step, "loss": None, "grad_norm": None, "new": [1]}) == []


# -- loads ------------------------------------------------------------------------------------------------------------


def test_layers_that_use_all_their_experts_are_no_trouble() -> None:
    """A dense router, and layers of 1, 2 and 8 experts: what cannot be uneven is not told to be."""
    assert alerts(metrics(step, [1.0], [0.5, 0.5], [1 / 8] * 8) for step in range(1, 200)) == {}


def test_layers_of_different_sizes_are_judged_each_by_its_own() -> None:
    """Even for 2 experts is a collapse of 8, and 3% of the choices much for one of 32, next to nothing for one of 2."""
    loads = ([0.5, 0.5], [0.5, 0.5] + [0.0] * 6, [1 / 32] * 32)
    raised = alerts(metrics(step, *loads) for step in range(1, 60))
    assert list(raised) == [WINDOW]
    assert raised[WINDOW] == [
        "layer 1 is collapsing: 2 of its 8 experts got 100% of the choices in the last 25 steps, an even share is 25%; "
        "raise --balance-coef",
        "dead: experts 2, 3, 4, 5, 6, 7 of layer 1, each with under 1% of an even share of the choices in the last 25 "
        "steps; raise --balance-coef",
    ]


def test_misplaced() -> None:
    # even is 1/4 each: .25 + .05 of [.5 .3 .1 .1] are too much
    assert misplaced(np.array([0.5, 0.3, 0.1, 0.1])) == pytest.approx(0.30)
    assert misplaced(np.array([0.5, 0.5, 0.0, 0.0])) == pytest.approx(0.50)
    assert misplaced(np.array(EVEN)) == 0


def test_collapse() -> None:
    """Layer 1 sends 90% to two of four experts; told when a window is full of it, in words, once."""
    collapsed = [0.46, 0.44, 0.06, 0.04]
    raised = alerts(metrics(step, EVEN, collapsed) for step in range(1, 200))
    assert the_one(raised, WINDOW) == (
        "layer 1 is collapsing: 2 of its 4 experts got 90% of the choices in the last 25 steps, an even share is 50%; "
        "raise --balance-coef"
    )


def test_collapse_of_several_layers_is_one_alert() -> None:
    raised = alerts(metrics(step, [0.45, 0.45, 0.05, 0.05], EVEN, [0.49, 0.49, 0.01, 0.01]) for step in range(1, 60))
    assert the_one(raised, WINDOW).startswith("layer 2 (and layer 0) is collapsing: 2 of its 4 experts got 98%")


def test_a_collapse_that_comes_back_is_told_again() -> None:
    collapsed = [0.46, 0.44, 0.06, 0.04]
    loads = [collapsed] * 50 + [EVEN] * 50 + [collapsed] * 50
    first, second = alerts(metrics(step, load) for step, load in enumerate(loads, 1))
    assert (first, 100 < second < 150) == (WINDOW, True)


def test_a_load_that_hovers_at_the_bound_is_told_once() -> None:
    def hovering() -> Steps:
        for step in range(1, 600):
            excess = 0.35 + 0.03 * np.sin(step / 40)  # 32% to 38% misplaced
            yield metrics(step, [0.25 + excess / 2] * 2 + [0.25 - excess / 2] * 2)

    assert sum(map(len, alerts(hovering()).values())) == 1


def test_a_layer_on_its_way_back_is_not_reported() -> None:
    def mending() -> Steps:
        for step in range(1, 200):
            excess = 0.49 * np.exp(-step / 60)  # falls through 35% at step 20, through 32% when the window is full
            yield metrics(step, [0.25 + excess / 2] * 2 + [0.25 - excess / 2] * 2)

    assert alerts(mending()) == {}


def test_dead_experts() -> None:
    """Alive for 60 steps, then nothing: dead when no step of the window had it."""
    loads = [EVEN] * 60 + [[0.4, 0.3, 0.3, 0.0]] * 100
    raised = alerts(metrics(step, EVEN, load) for step, load in enumerate(loads, 1))
    assert the_one(raised, 60 + WINDOW) == (
        "dead: expert 3 of layer 1, each with under 1% of an even share of the choices in the last 25 steps; "
        "raise --balance-coef"
    )


def test_dead_experts_are_named_by_layer() -> None:
    half = [0.5, 0.0, 0.5, 0.0]
    (raised,) = alerts(metrics(step, half, EVEN, [0.4, 0.3, 0.3, 0.0]) for step in range(1, 60)).values()
    assert any("experts 1, 3 of layer 0, expert 3 of layer 2" in alert for alert in raised)


def test_of_many_dead_experts_some_are_named() -> None:
    load = [0.5, 0.5] + [0.0] * 18
    (raised,) = alerts(metrics(step, load) for step in range(1, 60)).values()
    assert any("experts 2, 3, 4, 5, 6, 7, 8, 9 and 10 more of layer 0, each" in alert for alert in raised)


def test_an_expert_that_returns_and_dies_again() -> None:
    dead = [0.4, 0.3, 0.3, 0.0]
    loads = [dead] * 40 + [EVEN] * 40 + [dead] * 40
    assert list(alerts(metrics(step, load) for step, load in enumerate(loads, 1))) == [WINDOW, 80 + WINDOW]


def test_of_many_experts_an_even_share_is_not_dead() -> None:
    """Of 1024 experts each has .098% of the choices, which is an even share."""
    even = np.full(1024, 1 / 1024)
    one_dead = np.concatenate([[0.0], np.full(1023, 1 / 1023)])
    assert alerts(metrics(step, even.tolist()) for step in range(1, 40)) == {}
    assert "expert 0 of layer 0" in the_one(alerts(metrics(step, one_dead.tolist()) for step in range(1, 40)), WINDOW)


# -- gradients and losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [0.0, 3e-8])
def test_dead_router(norm: float) -> None:
    raised = alerts(metrics(step, grad_norm={"router": norm}) for step in range(1, 60))
    assert the_one(raised, STILL).startswith("the routers do not learn: their gradient has been zero for 5 steps")


def test_a_router_that_starts_late_or_is_not_trained() -> None:
    first = (metrics(step, grad_norm={"router": 0.0 if step < STILL else 1e-3}) for step in range(1, 60))
    frozen = (metrics(step, grad_norm={"router": 0.0}, lr={"router": 0.0}) for step in range(1, 60))
    assert (alerts(first), alerts(frozen)) == ({}, {})


def noisy(name: str, count: int, spikes: dict[int, float]) -> Steps:
    """Steps with a figure that is 3 with a little noise, and at some steps another."""
    draw = np.random.default_rng(0)
    for step in range(1, count + 1):
        value = spikes.get(step, 3 + 0.05 * float(draw.normal()))
        yield metrics(step, **{name: value if name == "loss" else {"total": value}})


def test_loss_spike() -> None:
    alert = the_one(alerts(noisy("loss", 200, {90: 4.5})), 90)
    assert alert.startswith("the loss jumped to 4.5 at step 90, 1.49 times the median of the last 50 steps; ")
    assert "--lr" in alert


def test_a_loss_that_stays_high_is_told_once_and_the_next_spike_again() -> None:
    assert list(alerts(noisy("loss", 300, {**dict.fromkeys(range(90, 150), 4.5), 250: 4.5}))) == [90, 250]


def test_two_spikes_are_two_alerts() -> None:
    assert list(alerts(noisy("loss", 200, {90: 4.5, 95: 4.5}))) == [90, 95]


def test_a_spike_is_not_looked_for_before_there_is_a_history() -> None:
    assert alerts(noisy("loss", 100, {ENOUGH: 9.0})) == {}


def test_gradient_spike() -> None:
    assert the_one(alerts(noisy("grad_norm", 200, {120: 40.0})), 120).startswith("the gradient norm jumped to 40 at")
    assert alerts(noisy("grad_norm", 200, {120: 12.0})) == {}  # four times the median happens


def evaluations(losses: list[float]) -> Steps:
    return (metrics(10 * number, eval_loss=loss) for number, loss in enumerate(losses, 1))


def test_rising_evaluation() -> None:
    alert = the_one(alerts(evaluations([3.0, 2.9, 2.95, 3.0, 3.1, 3.2])), 50)
    assert alert.startswith("the held-out loss has risen 3 times in a row, to 3.1; it was 2.9 at its best; ")
    assert list(alerts(evaluations([2.9, 3.0, 3.1, 3.2, 2.8, 3.0, 3.1, 3.2]))) == [40, 80]


@pytest.mark.parametrize("losses", [[3.0, 3.1, 3.2, 3.1, 3.2, 3.3], [3.0, 3.001, 3.002, 3.003, 3.004]], ids=str)
def test_an_evaluation_that_wavers_is_no_alert(losses: list[float]) -> None:
    assert alerts(evaluations(losses)) == {}


# -- experts ----------------------------------------------------------------------------------------------------------


def alike(step: int, cosine: Callable[[int], float | None], **changes: Any) -> dict[str, Any]:
    layers = [{"layer": 0, "load": EVEN, "cosine": 0.9}, {"layer": 1, "load": EVEN, "cosine": cosine(step)}]
    return metrics(step, **changes) | {"layers": layers}


def test_experts_that_stay_identical() -> None:
    """Looked at every 20 steps."""
    raised = alerts(alike(step, lambda at: 1.0 if at % 20 == 0 else None) for step in range(1, 300))
    assert the_one(raised, LEARNT) == (
        "the experts of layer 1 are still identical after 100 steps (cosine 1.0000000); raise --lr or --expert-lr, or "
        "convert with --noise"
    )


def test_experts_that_part_or_are_not_trained() -> None:
    parting = (alike(step, lambda at: 1 - 1e-7 * at) for step in range(1, 300))
    frozen = (alike(step, lambda _: 1.0, lr={"experts": 0.0}) for step in range(1, 300))
    assert (alerts(parting), alerts(frozen)) == ({}, {})


# -- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [3, 70, 130])
def test_a_watch_goes_on_where_the_lines_of_a_file_end(stop: int) -> None:
    """Everything goes wrong at some step; a second Watch, fed the old lines, says what the first would have said."""
    steps = [
        metrics(
            step, EVEN, EVEN if step < 60 else [0.5, 0.5, 0.0, 0.0], loss=9.0 if step == 100 else 3.0,
            grad_norm={"router": 0.0 if step > 120 else 0.1}, eval_loss=2 + step / 100,
        )
        for step in range(1, 200)
    ]  # fmt: skip
    whole = Watch()
    expected = [whole.see(one) for one in steps]
    assert sum(map(len, expected)) == 5
    resumed = Watch()
    for one in steps[:stop]:
        resumed.see(one)
    assert [resumed.see(one) for one in steps[stop:]] == expected[stop:]
