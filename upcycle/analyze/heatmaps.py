"""Draws the load of every expert as colour: at the end of a training, and over its steps."""

from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from upcycle.analyze.buckets import Floats
from upcycle.analyze.history import END, History
from upcycle.analyze.style import new_figure
from upcycle.figures import bound_of

FULL = 2.0
"""Doublings of an even share at which a colour is full: a quarter and four times."""

COLOURS = "RdBu_r"
"""Blue gets less than an even share, white an even one, red more; red and blue are told apart by everybody."""

DEAD = bound_of("dead")
"""Part of an even share below which an expert is marked."""

CROSS = "\N{MULTIPLICATION SIGN}"

BAR = 4.0
"""Inches of the colour scale at most."""

WRITTEN = 600
"""Cells up to which each has its number written in it."""


def draw_last_load(run: History) -> Figure | None:
    """Return the load at the end, layers by experts; None for a dense model."""
    if not run.layers:
        return None
    share_LE = _table(run)
    layers, experts = share_LE.shape
    width, height = min(16.0, max(6.0, 2.0 + 0.46 * experts)), min(24.0, 1.7 + 0.27 * layers)
    last = f"the last {min(END, run.steps)} steps"
    note = f"{run.label}; mean of {last}; {CROSS} marks experts with under {DEAD:.0%} of an even share"
    figure = new_figure(width, height, "Load of the experts at the end", note)
    axes = figure.add_subplot()
    image = axes.imshow(_doublings(share_LE), aspect="auto", interpolation="nearest", **_colours())
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    _ticks(axes, layers, experts, run.layers)
    _write_cells(axes, share_LE)
    _colorbar(figure, image)
    return figure


def draw_load_over_steps(run: History) -> Figure | None:
    """Return a small heatmap per layer, experts by steps; None for a dense model."""
    if not run.layers:
        return None
    columns = min(len(run.layers), 4 if len(run.layers) <= 48 else 6)
    rows = ceil(len(run.layers) / columns)
    note = run.label + (f"; a column is the mean of {run.load_every:,} steps" if run.load_every > 1 else "")
    figure = new_figure(1.6 + 2.7 * columns, 1.3 + 1.45 * rows, "Load of the experts over the steps", note)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for axes in grid.flat[len(run.layers) :]:
        axes.set_axis_off()
    for number, (layer, load_PE) in enumerate(zip(run.layers, run.loads, strict=True)):
        axes = grid.flat[number]
        image = _draw_over_steps(axes, load_PE, run)
        axes.set_title(f"layer {layer}", fontsize=8.5, fontweight="normal")
        below = number + columns >= len(run.layers)
        axes.tick_params(labelbottom=below)
        axes.set_xlabel("step" if below else "")
        axes.set_ylabel("expert" if number % columns == 0 else "")
    _colorbar(figure, image)
    return figure


def _draw_over_steps(axes: Axes, load_PE: Floats, run: History) -> Any:
    experts = load_PE.shape[1]
    first, last = run.load_steps[0], run.load_steps[-1]
    half = max(0.5, (last - first) / max(1, len(run.load_steps) - 1) / 2)
    image = axes.imshow(
        _doublings(load_PE.T * experts), aspect="auto", interpolation="nearest",
        extent=(first - half, last + half, experts - 0.5, -0.5), **_colours(),
    )  # fmt: skip
    axes.grid(visible=False)
    axes.set_yticks(_few(experts, 8))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.tick_params(labelsize=7, length=2)
    return image


def _table(run: History) -> Floats:
    """The loads at the end `(L, E)` as multiples of an even share; NaN where a layer has fewer experts than another."""
    table = np.full((len(run.layers), max(map(len, run.last_loads))), np.nan)
    for row, load in zip(table, run.last_loads, strict=True):
        row[: len(load)] = load * len(load)
    return table


def _doublings(shares: Floats) -> Floats:
    """Multiples of an even share as doublings, no further than the colours go."""
    return np.asarray(np.log2(np.clip(shares, 2**-FULL, 2**FULL)))


def _colours() -> dict[str, Any]:
    return {"cmap": COLOURS, "norm": TwoSlopeNorm(0, -FULL, FULL)}


def _colorbar(figure: Figure, image: Any) -> None:
    ticks = np.arange(-FULL, FULL + 1)
    shrink = min(1.0, BAR / figure.get_figheight())
    bar = figure.colorbar(
        image, ax=figure.axes, label="times an even share", ticks=ticks, pad=0.015, shrink=shrink, anchor=(0, 1),
        aspect=24,
    )  # fmt: skip
    bar.ax.set_yticklabels(["¼ or less", "½", "1 (even)", "2", "4 or more"])
    bar.outline.set_visible(False)


def _ticks(axes: Axes, layers: int, experts: int, names: tuple[int, ...]) -> None:
    axes.grid(visible=False)
    axes.set_xticks(_few(experts, 32))
    rows = _few(layers, 40)
    axes.set_yticks(rows, [str(names[row]) for row in rows])
    axes.tick_params(length=0)
    if experts <= 64:
        axes.set_xticks(np.arange(experts - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(layers - 1) + 0.5, minor=True)
        axes.grid(visible=True, which="minor", color="white", linewidth=1)
        axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def _few(count: int, most: int) -> list[int]:
    """At most so many of the numbers from 0, evenly apart."""
    return list(range(0, count, ceil(count / most)))


def _write_cells(axes: Axes, share_LE: Floats) -> None:
    """Write numbers where there is room, and a cross on every dead expert."""
    roomy = share_LE.size <= WRITTEN and share_LE.shape[1] <= 32
    for (row, column), share in np.ndenumerate(share_LE):
        dead = share < DEAD
        if dead or (roomy and not np.isnan(share)):
            text = CROSS if dead else f"{share:.2f}" if share < 9.95 else f"{share:.0f}"
            full = abs(np.log2(max(share, 1e-9))) > 0.7 * FULL
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if full else "#333333")
