"""Draws curves over the steps of one or several trainings: losses, rates, gradients, speed, every layer's routing."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from upcycle.analyze.buckets import Floats
from upcycle.analyze.history import Curve, History
from upcycle.analyze.style import GREY, PALETTE, legend_beside, new_figure
from upcycle.figures import FIGURES, PER_LAYER, rows_of
from upcycle.figures import Figure as Row

SMOOTH = 50
"""A smoothed curve is a running mean over this part of the points."""

PANELS = {
    title: tuple(row for row in PER_LAYER if row.title == title)
    for title in dict.fromkeys(row.title for row in PER_LAYER if row.title)
}
"""Title -> the figures of layers that share its axes."""

COUNTED = ((PALETTE[4], 3.0, 0.45), (PALETTE[1], 1.2, 1.0))
"""Colour, width and opacity of cold and of dead experts."""

WIDE = 6
"""Times an even share from which on the axis of the busiest expert is logarithmic."""


def draw_losses(runs: Sequence[History]) -> Figure:
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


def draw_router_losses(runs: Sequence[History]) -> Figure | None:
    """Return the auxiliary losses of the routers, means over layers; None where there are none."""
    rows = [row for row in rows_of("loss") if any(run.curves[row.name].known for run in runs)]
    if not rows:
        return None
    figure = new_figure(1.2 + 3.9 * len(rows), 3.6, "Router losses, mean over layers", _small_print(runs))
    for place, row in enumerate(rows, 1):
        axes = _axes(figure, (1, len(rows), place), row.title, row.unit)
        for run, colour in zip(runs, PALETTE, strict=False):
            _draw_curve(axes, run.curves[row.name], colour, run.label, strong=True)
        _reference(axes, row.even)
        if len(runs) > 1 and place == len(rows):
            legend_beside(axes)
    return figure


def draw_optimizer(runs: Sequence[History]) -> Figure:
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


def draw_speed(runs: Sequence[History]) -> Figure:
    """Return tokens per second, and the share of the device's arithmetic where that is known."""
    utilised = any(run.curves["mfu"].known for run in runs)
    figure = new_figure(9, 5.6 if utilised else 3.6, "Speed", _small_print(runs))
    rows = [FIGURES["tokens_per_second"], *([FIGURES["mfu"]] if utilised else [])]
    for place, row in enumerate(rows, 1):
        axes = _axes(figure, (len(rows), 1, place), row.title, row.unit)
        for run, colour in zip(runs, PALETTE, strict=False):
            _draw_curve(axes, run.curves[row.name], colour, run.label, strong=True)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.yaxis.set_major_formatter("{x:.0%}" if row.name == "mfu" else "{x:,.0f}")
        if place == 1 and len(runs) > 1:
            legend_beside(axes)
    return figure


def draw_layers(runs: Sequence[History]) -> Figure | None:
    """Return what the routers of every layer do, a line a layer; of several runs the median and the range of layers."""
    routed = [(run, colour) for run, colour in zip(runs, PALETTE, strict=False) if run.layers]
    if not routed:
        return None
    lines = ceil(len(PANELS) / 2)
    figure = new_figure(10, 3.2 * lines, "Routing by layer", _small_print(runs, layers=True))
    grid = figure.subplots(lines, 2, sharex=True).flat
    for axes in grid[len(PANELS) :]:
        axes.set_axis_off()
    for (title, rows), axes in zip(PANELS.items(), grid, strict=False):
        _label(axes, title, rows[0].unit)
        axes.set_xlabel("step" if axes.get_subplotspec().is_last_row() else "")
        _draw_panel(axes, routed, rows, alone=len(runs) == 1)
    if len(runs) == 1:
        _add_layer_scale(figure, runs[0])
    else:
        legend_beside(figure.axes[1])
    return figure


def _draw_panel(axes: Axes, routed: Sequence[tuple[History, str]], rows: Sequence[Row], *, alone: bool) -> None:
    """Draw figures that share axes; those that are added up over layers as one line, others by layer."""
    if rows[0].added:
        _draw_counts(axes, routed, rows)
    elif alone:
        _draw_each_layer(axes, routed[0][0], rows[0].name)
    else:
        _draw_ranges(axes, routed, rows[0].name)
    _reference(axes, rows[0].even)
    if rows[0].name == "max_over_mean" and axes.get_ylim()[1] > WIDE:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")


def _add_layer_scale(figure: Figure, run: History) -> None:
    """Say which colour is which layer."""
    if len(run.layers) > 1:
        scale = ScalarMappable(Normalize(run.layers[0], run.layers[-1]), colormaps["viridis"])
        bar = figure.colorbar(scale, ax=figure.axes, label="layer", aspect=40, pad=0.01, format="%d")
        bar.locator = MaxNLocator(8, integer=True)
        bar.update_ticks()


def _draw_each_layer(axes: Axes, run: History, name: str) -> None:
    values_PL = run.layer_curves[name]
    for number in range(len(run.layers)):
        colour = colormaps["viridis"](number / max(1, len(run.layers) - 1))
        values = values_PL[:, number]
        known = ~np.isnan(values)
        smooth = values[known] if name == "cosine" else _smoothed(values[known])
        axes.plot(run.curves["loss"].step[known], smooth, color=colour, linewidth=1.0, alpha=0.85)


def _draw_ranges(axes: Axes, routed: Sequence[tuple[History, str]], name: str) -> None:
    for run, colour in routed:
        known = ~np.isnan(run.layer_curves[name]).all(1)
        values_PL, steps = run.layer_curves[name][known], run.curves["loss"].step[known]
        if len(values_PL):
            axes.fill_between(steps, values_PL.min(1), values_PL.max(1), color=colour, alpha=0.15, linewidth=0)
            axes.plot(steps, np.median(values_PL, axis=1), color=colour, label=run.label)


def _draw_counts(axes: Axes, routed: Sequence[tuple[History, str]], rows: Sequence[Row]) -> None:
    """Draw experts of all layers together, the figure with the larger bound first, for it counts the others' too."""
    alone, ordered = len(routed) == 1, sorted(rows, key=lambda row: -(row.bound or 0))
    for run, colour in routed:
        for row, (own, width, alpha) in zip(ordered, COUNTED, strict=False):
            counts = run.layer_curves[row.name].sum(1)
            axes.plot(
                run.curves["loss"].step, counts, color=own if alone else colour, linewidth=width, alpha=alpha,
                label=row.label,
            )  # fmt: skip
    if alone:
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


def _draw_alerts(axes: Axes, runs: Sequence[History]) -> None:
    steps = [step for run in runs for step in run.alerts]
    if steps:
        axes.plot(
            steps, np.zeros(len(steps)), transform=axes.get_xaxis_transform(), linestyle="", marker="^", markersize=6,
            color="#B00020", clip_on=False, label="alert", zorder=5,
        )  # fmt: skip


def _groups(run: History, kind: str, *, all_groups: bool) -> list[tuple[str, Curve]]:
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


def _small_print(runs: Sequence[History], *, layers: bool = False) -> str:
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
