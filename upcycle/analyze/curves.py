"""Curves over the steps of one or several runs: losses, learning rates, gradients, speed, and every layer's routing."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from upcycle.analyze.buckets import Floats
from upcycle.analyze.run import Curve, Run
from upcycle.analyze.style import GREY, PALETTE, legend_beside, new_figure

SMOOTH = 50
"""A smoothed curve is a running mean over this part of the points."""

ROUTER_LOSSES = {
    "balance_loss": ("Balance loss", "1 is even", 1.0),
    "importance_loss": ("Importance loss", "0 is even", 0.0),
    "z_loss": ("Router z-loss", "squared log-sum-exp of the logits", None),
}
"""Name -> title, what the axis says, the value of even routing."""

LAYER_FIGURES = {
    "max_over_mean": ("Busiest expert", "times an even share", 1.0),
    "entropy": ("Router entropy", "of the most there can be", 1.0),
    "unused": ("Cold and dead experts", "experts of all layers", None),
    "cosine": ("Experts' likeness", "mean cosine of two experts' weights", None),
}


WIDE = 6
"""Times an even share from which on the axis of the busiest expert is logarithmic."""


def draw_losses(runs: Sequence[Run]) -> Figure:
    """Return the language-modelling loss, on the data and on held-out text."""
    figure = new_figure(9, 4.8, "Language-modelling loss", _small_print(runs))
    axes = _axes(figure, 111, "", "loss, nats per token")
    for run, colour in zip(runs, PALETTE, strict=False):
        name = run.label if len(runs) > 1 else "training"
        _draw_curve(axes, run.curves["loss"], colour, name, strong=True)
        steps, losses = run.evaluations
        if len(steps):
            held = (PALETTE[1], "-", "held out") if len(runs) == 1 else (colour, (0, (4, 2)), f"{run.label}, held out")
            axes.plot(
                steps, losses, color=held[0], linestyle=held[1], label=held[2], linewidth=1.1,
                marker="o" if len(steps) <= 60 else "", markersize=4.5, markerfacecolor="white",
            )  # fmt: skip
    _draw_alerts(axes, runs)
    legend_beside(axes)
    return figure


def draw_router_losses(runs: Sequence[Run]) -> Figure | None:
    """Return the auxiliary losses of the routers, means over layers; None where there are none."""
    names = [name for name in ROUTER_LOSSES if any(run.curves[name].known for run in runs)]
    if not names:
        return None
    figure = new_figure(1.2 + 3.9 * len(names), 3.6, "Router losses, mean over layers", _small_print(runs))
    for place, name in enumerate(names, 1):
        title, unit, even = ROUTER_LOSSES[name]
        axes = _axes(figure, (1, len(names), place), title, unit)
        for run, colour in zip(runs, PALETTE, strict=False):
            _draw_curve(axes, run.curves[name], colour, run.label, strong=True)
        _reference(axes, even)
        if len(runs) > 1 and place == len(names):
            legend_beside(axes)
    return figure


def draw_optimizer(runs: Sequence[Run]) -> Figure:
    """Return learning rates and gradient norms by group; of several runs only the norm of the whole gradient."""
    figure = new_figure(9, 6, "Learning rates and gradients", _small_print(runs))
    rates = _axes(figure, 211, "Learning rate", "")
    norms = _axes(figure, 212, "Gradient norm, before clipping", "log scale")
    norms.set_yscale("log")
    for run, colour in zip(runs, PALETTE, strict=False):
        for axes, kind in ((rates, "lr"), (norms, "grad_norm")):
            for number, (names, curve) in enumerate(_groups(run, kind, all_groups=len(runs) == 1)):
                label = names if len(runs) == 1 else f"{run.label}: {names}" if kind == "lr" else run.label
                shade = PALETTE[number % len(PALETTE)] if len(runs) == 1 else colour
                _draw_curve(
                    axes, curve, shade, label, strong=kind == "grad_norm", dashes=number if len(runs) > 1 else 0
                )
    rates.ticklabel_format(axis="y", scilimits=(-2, 3))
    rates.set_ylim(bottom=0)
    legend_beside(rates)
    legend_beside(norms)
    return figure


def draw_speed(runs: Sequence[Run]) -> Figure:
    """Return tokens per second, and the share of the device's arithmetic where that is known."""
    utilised = any(run.curves["mfu"].known for run in runs)
    figure = new_figure(9, 5.6 if utilised else 3.6, "Speed", _small_print(runs))
    panels = [("tokens_per_second", "Throughput", "tokens per second")]
    panels += [("mfu", "Model FLOPs utilisation", "of the device's peak")] if utilised else []
    for place, (name, title, unit) in enumerate(panels, 1):
        axes = _axes(figure, (len(panels), 1, place), title, unit)
        for run, colour in zip(runs, PALETTE, strict=False):
            _draw_curve(axes, run.curves[name], colour, run.label, strong=True)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.yaxis.set_major_formatter("{x:.0%}" if name == "mfu" else "{x:,.0f}")
        if place == 1 and len(runs) > 1:
            legend_beside(axes)
    return figure


def draw_layers(runs: Sequence[Run]) -> Figure | None:
    """Return what the routers of every layer do, a line a layer; of several runs the median and the range of layers."""
    routed = [(run, colour) for run, colour in zip(runs, PALETTE, strict=False) if run.layers]
    if not routed:
        return None
    figure = new_figure(10, 6.4, "Routing by layer", _small_print(runs, layers=True))
    grid = figure.subplots(2, 2, sharex=True).flat
    for (name, (title, unit, even)), axes in zip(LAYER_FIGURES.items(), grid, strict=True):
        _label(axes, title, unit)
        axes.set_xlabel("step" if axes.get_subplotspec().is_last_row() else "")
        if name == "unused":
            _draw_unused(axes, routed)
        elif len(runs) == 1:
            _draw_each_layer(axes, runs[0], name)
        else:
            _draw_ranges(axes, routed, name)
        _reference(axes, even)
        if name == "max_over_mean" and axes.get_ylim()[1] > WIDE:
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:g}")
    if len(runs) == 1:
        _add_layer_scale(figure, runs[0])
    else:
        legend_beside(figure.axes[1])
    return figure


def _add_layer_scale(figure: Figure, run: Run) -> None:
    """Say which colour is which layer."""
    if len(run.layers) > 1:
        scale = ScalarMappable(Normalize(run.layers[0], run.layers[-1]), colormaps["viridis"])
        bar = figure.colorbar(scale, ax=figure.axes, label="layer", aspect=40, pad=0.01, format="%d")
        bar.locator = MaxNLocator(8, integer=True)
        bar.update_ticks()


def _draw_each_layer(axes: Axes, run: Run, name: str) -> None:
    values_PL = run.layer_curves[name]
    for number in range(len(run.layers)):
        colour = colormaps["viridis"](number / max(1, len(run.layers) - 1))
        values = values_PL[:, number]
        known = ~np.isnan(values)
        smooth = values[known] if name == "cosine" else _smoothed(values[known])
        axes.plot(run.curves["loss"].step[known], smooth, color=colour, linewidth=1.0, alpha=0.85)


def _draw_ranges(axes: Axes, routed: Sequence[tuple[Run, str]], name: str) -> None:
    for run, colour in routed:
        known = ~np.isnan(run.layer_curves[name]).all(1)
        values_PL, steps = run.layer_curves[name][known], run.curves["loss"].step[known]
        if len(values_PL):
            axes.fill_between(steps, values_PL.min(1), values_PL.max(1), color=colour, alpha=0.15, linewidth=0)
            axes.plot(steps, np.median(values_PL, axis=1), color=colour, label=run.label)


def _draw_unused(axes: Axes, routed: Sequence[tuple[Run, str]]) -> None:
    """Dead and cold experts of all layers together; the dead are cold as well."""
    for run, colour in routed:
        steps, alone = run.curves["loss"].step, len(routed) == 1
        cold, dead = (run.layer_curves[name].sum(1) for name in ("cold", "dead"))
        axes.plot(steps, cold, color=PALETTE[4] if alone else colour, linewidth=3, alpha=0.45, label="cold")
        axes.plot(steps, dead, color=PALETTE[1] if alone else colour, linewidth=1.2, label="dead")
    if len(routed) == 1:
        axes.legend(loc="best")
    else:
        axes.set_title("Cold (pale) and dead experts")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))


def _draw_curve(axes: Axes, curve: Curve, colour: str, label: str, *, strong: bool = False, dashes: int = 0) -> None:
    """The points, their range where they are means; with `strong` pale, under a running mean."""
    known = ~np.isnan(curve.mean)
    if not known.any():
        return
    step, mean = curve.step[known], curve.mean[known]
    style = ("-", (0, (4, 1.5)), (0, (1, 1.2)))[dashes % 3]
    if strong and (curve.low[known] < curve.high[known]).any():
        axes.fill_between(step, curve.low[known], curve.high[known], color=colour, alpha=0.18, linewidth=0)
    elif strong:
        axes.plot(step, mean, color=colour, alpha=0.3, linewidth=0.7)
    axes.plot(step, _smoothed(mean) if strong else mean, color=colour, label=label, linestyle=style)


def _draw_alerts(axes: Axes, runs: Sequence[Run]) -> None:
    steps = [step for run in runs for step in run.alerts]
    if steps:
        axes.plot(
            steps, np.zeros(len(steps)), transform=axes.get_xaxis_transform(), linestyle="", marker="^", markersize=6,
            color="#B00020", clip_on=False, label="alert", zorder=5,
        )  # fmt: skip


def _groups(run: Run, kind: str, *, all_groups: bool) -> list[tuple[str, Curve]]:
    """Curves of a kind, those that are equal under one name."""
    found: list[tuple[str, Curve]] = []
    for name, curve in run.curves.items():
        head, _, group = name.partition(".")
        if head != kind or not curve.known or not (all_groups or kind == "lr" or group == "total"):
            continue
        same = next((at for at, (_, one) in enumerate(found) if np.array_equal(one.mean, curve.mean, True)), None)
        if same is None:
            found.append((group, curve))
        else:
            found[same] = (f"{found[same][0]}, {group}", found[same][1])
    return found


def _axes(figure: Figure, place: int | tuple[int, int, int], title: str, unit: str) -> Axes:
    axes = figure.add_subplot(place) if isinstance(place, int) else figure.add_subplot(*place)
    _label(axes, title, unit)
    return axes


def _label(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xlabel("step")
    axes.margins(x=0.01)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", integer=True)


def _reference(axes: Axes, even: float | None) -> None:
    if even is not None:
        axes.axhline(even, color=GREY, linestyle=(0, (1, 2)), linewidth=1)


def _smoothed(values: Floats) -> Floats:
    """The running mean over a part of the points, over fewer where they begin and end."""
    half = len(values) // SMOOTH // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((sums[stop] - sums[start]) / (stop - start))


def _small_print(runs: Sequence[Run], *, layers: bool = False) -> str:
    """How the lines were made from the steps."""
    words = [] if len(runs) > 1 else [runs[0].label]
    every = sorted({run.every for run in runs})
    if every != [1]:
        counts = " or ".join(f"{one:,}" for one in every)
        words.append(f"a point is the mean of {counts} steps{'' if layers else ', the band its range'}")
    half = max(len(run.curves["loss"].step) for run in runs) // SMOOTH // 2
    if half:
        span = f"{(2 * half + 1) * every[0]:,} steps" if len(runs) == 1 else f"{1 / SMOOTH:.0%} of the steps"
        words.append(f"the lines are running means over {span}")
    if layers and len(runs) > 1:
        words.append("line: the median layer, band: the range of the layers")
    return "; ".join(words)
