"""Sets the style of pictures and saves them, with the same bytes for the same figures."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, which people see apart whatever their colour vision; their yellow is too pale for a line."""

GREY = "#6b6b6b"

DPI = 150

_STYLE: dict[str, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.labelcolor": "#333333",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.6,
    "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": "#333333", "ytick.labelcolor": "#333333",
    "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.5, "lines.solid_capstyle": "round",
    "figure.constrained_layout.h_pad": 0.08, "figure.constrained_layout.w_pad": 0.08,
    "svg.hashsalt": "upcycle",  # names of clip paths are random without it
}  # fmt: skip

_METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in our style within, whatever the user's own settings are."""
    with style.context(["default", _STYLE], after_reset=True):
        yield


def new_figure(width: float, height: float, title: str, note: str = "") -> Figure:
    """Return an empty figure of so many inches; `note` is the small print below."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
    if note:
        figure.supxlabel(note, x=0.012, ha="left", fontsize=7.5, color=GREY)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as what its name ends in; return `path`."""
    kind = path.suffix[1:]
    drawn = BytesIO()
    figure.savefig(drawn, format=kind, metadata=_METADATA[kind])
    path.write_bytes(drawn.getvalue())
    return path


def legend_beside(axes: Axes, **settings: Any) -> None:
    """Put the legend to the right of the axes, where it hides nothing; none where there is nothing to say."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.005, 1.0), borderaxespad=0, **settings)
