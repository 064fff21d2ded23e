"""Shows a training while it runs: a panel on a terminal, a line now and then in a pipe."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from upcycle.cli.tables import printable
from upcycle.cli.trace import BARS, Trace, sparkline
from upcycle.figures import FIGURES, PER_LAYER, ROUTER_LOSSES, Figure, bound_of

Metrics = dict[str, Any]

LINE_SECONDS, LINE_PART, LINE_PATIENCE = 10.0, 100, 600.0
"""In a pipe a step gets a line when 10 seconds and a hundredth of the steps have gone by since the last one, or ten
minutes: often enough for a short run, and a log of a hundred-odd lines for a long one."""

DRAW_SECONDS = 0.2
"""Seconds between two drawings of the panel."""

PACE = 50
"""Last steps by whose pace the time that is left is guessed: the first ones of a run are slow."""

MOST_LAYERS, NOTE_LINES = 12, 6
"""Lines of the panel. Notes that no longer fit go up into the terminal's history, where all of them stay."""

AROUND_LAYERS = 13
"""Lines of the panel besides layers and notes."""

ROOMY = 80
"""Columns of a terminal from which on all figures of a layer have room."""

LOSSES = {name: FIGURES[name].label for name in ("loss", *ROUTER_LOSSES)}

COLOURS = {"dead": "bold red", "cold": "yellow"}
"""Styles of counts that are above zero."""

BESIDE_FIGURES = 16
"""Columns of the table of layers besides loads and figures."""


class Panel:
    """Shows a training to the people who wait for it; a context manager.

    Messages go to standard error, which leaves standard output to programs.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Choose panel or lines by where the console leads."""
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._drawn = self._started = self._printed = clock()
        self._total = self._done = self._printed_step = 0
        self._paces: deque[tuple[float, int]] = deque(maxlen=PACE)
        self._traces: dict[str, Trace] = {}
        self._last: Metrics = {}
        self._cosines: dict[int, float] = {}
        self._evaluated: tuple[float, int] | None = None
        self._notes: deque[Text] = deque()
        draws = self._console.is_terminal and not self._console.is_dumb_terminal
        unicode = self._console.encoding.startswith("utf")
        self._live = Live(console=self._console, auto_refresh=False) if draws and unicode else None

    def __enter__(self) -> "Panel":
        """Take the lower part of the terminal."""
        if self._live:
            self._live.start()
            _log_to(sys.stderr)  # which is now a way to above the panel
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        if self._live:
            self._draw(self._live)
            self._live.stop()
            _log_to(sys.stderr)
        elif self._last and self._printed_step != self._done:
            self._print_line()

    def begin(self, total_steps: int, done: int) -> None:
        """Say how many steps the run has, and how many were made before."""
        self._total, self._done = total_steps, done
        self._started = self._clock()
        self._paces.append((self._started, done))

    def step(self, metrics: Metrics) -> None:
        """Show a step, as `metrics.jsonl` has it."""
        now, self._done, self._last = self._clock(), metrics["step"], metrics
        self._paces.append((now, self._done))
        for name in LOSSES:
            if metrics.get(name) is not None:
                self._traces.setdefault(name, Trace()).add(metrics[name])
        if metrics.get("eval_loss") is not None:
            self._evaluated = metrics["eval_loss"], self._done
        self._cosines |= {
            at["layer"]: at["cosine"] for at in metrics.get("layers") or [] if at.get("cosine") is not None
        }
        if self._live is None:
            self._maybe_print_line(now)
        elif now - self._drawn >= DRAW_SECONDS:
            self._draw(self._live)

    def note(self, text: str) -> None:
        """Show a sentence that should not be missed: an alert, a checkpoint that was saved."""
        style = "yellow" if text in (self._last.get("alerts") or []) else ""
        line = Text.assemble((f"step {self._done:,}: ", "dim"), (printable(text), style))
        if self._live is None:
            self._console.print(line, highlight=False, soft_wrap=True)
            return
        self._notes.append(line)
        while self._note_lines() > NOTE_LINES and len(self._notes) > 1:
            self._console.print(self._notes.popleft(), highlight=False)
        self._draw(self._live)

    def _note_lines(self) -> int:
        return sum(len(note.wrap(self._console, self._console.width)) for note in self._notes)

    def _maybe_print_line(self, now: float) -> None:
        waited, steps = now - self._printed, self._done - self._printed_step
        due = waited >= LINE_SECONDS and steps * LINE_PART >= self._total
        due = due or self._last.get("eval_loss") is not None
        if due or waited >= LINE_PATIENCE or self._done >= self._total or not self._printed_step:
            self._print_line()

    def _print_line(self) -> None:
        self._printed, self._printed_step = self._clock(), self._done
        left = self._left()
        parts = [
            f"step {self._done:,}/{self._total:,}",
            *_words(self._last),
            *([f"{left} left"] if left != "?" else []),
        ]
        self._console.print(Text("  ".join(parts)), highlight=False, soft_wrap=True)

    def _left(self) -> str:
        """How long the rest takes at the pace of the last steps."""
        (then, before), (now, done) = self._paces[0], self._paces[-1]
        return "?" if done <= before else duration((self._total - done) * (now - then) / (done - before))

    def _draw(self, live: Live) -> None:
        self._drawn = self._clock()
        live.update(Group(*self._rows()), refresh=True)

    def _rows(self) -> Iterator[RenderableType]:
        yield self._progress()
        if self._last:
            yield self._losses()
            yield _figures(self._last)
        if self._last.get("layers"):
            room = max(1, min(MOST_LAYERS, self._console.height - AROUND_LAYERS - self._note_lines()))
            layers = [{**layer, "cosine": self._cosines.get(layer["layer"])} for layer in self._last["layers"]]
            yield from layer_rows(layers, room, self._console.width)
        yield from self._notes

    def _progress(self) -> RenderableType:
        row = Table.grid(padding=(0, 2), expand=True)
        for ratio in (0, 1, 0, 0, 0):
            row.add_column(ratio=ratio or None, no_wrap=True)
        elapsed = duration(self._clock() - self._started)
        share = self._done / self._total if self._total else 0
        row.add_row(
            Text(f"step {self._done:,}/{self._total:,}", "bold"), ProgressBar(max(1, self._total), self._done),
            f"{share:.0%}", f"{self._left()} left", Text(f"{elapsed} gone", "dim"),
        )  # fmt: skip
        return row

    def _losses(self) -> RenderableType:
        rows = Table.grid(padding=(0, 2))
        rows.add_column(min_width=10, no_wrap=True)
        rows.add_column(min_width=7, no_wrap=True, justify="right")
        rows.add_column(min_width=14, no_wrap=True)
        rows.add_column(no_wrap=True)
        for name, trace in self._traces.items():
            line = Text(sparkline(trace.values), "cyan" if name == "loss" else "blue")
            rows.add_row(LOSSES[name], Text(f"{trace.last:.4f}", "bold"), f"smooth {trace.smooth:.4f}", line)
            if name == "loss" and self._evaluated:
                value, step = self._evaluated
                rows.add_row(FIGURES["eval_loss"].label, Text(f"{value:.4f}", "bold"), f"at step {step:,}", "")
        return rows


def layer_rows(layers: list[Metrics], room: int, width: int) -> Iterator[RenderableType]:
    """Yield a table of layers and the load of their experts: at most `room` layers, those that are least even."""
    worst = sorted(layers, key=lambda layer: (layer["dead"], layer["max_over_mean"]), reverse=True)[:room]
    rows = [row for row in PER_LAYER if row.label and (row.narrow or width >= ROOMY)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="dim", show_edge=False)
    table.add_column("layer", justify="right", no_wrap=True)
    table.add_column("load by expert", no_wrap=True)
    for row in rows:
        table.add_column(row.label, justify="right", no_wrap=True)
    taken = BESIDE_FIGURES + sum(len(row.label) + 2 for row in rows)
    for layer in sorted(worst, key=lambda one: int(one["layer"])):
        heat = _heat(layer["load"], max(8, width - taken))
        table.add_row(str(layer["layer"]), heat, *(_cell(row, layer) for row in rows))
    yield table
    if len(worst) < len(layers):
        yield Text(f"{len(layers) - len(worst)} more layers are more even than these", "dim")


def _cell(row: Figure, layer: Metrics) -> Text:
    """Write one figure of a layer; a count is dim where it is zero."""
    value = layer.get(row.name)
    text = row.missing if value is None and row.name in layer else _figure(value, row.form)
    style = "" if not row.added else COLOURS[row.name] if value else "dim"
    return Text(text, style)


def _heat(load: list[float], width: int) -> Text:
    """A bar for each expert, half as high as can be for an even share; of too many experts a profile, sorted."""
    cells = 2 if 2 * len(load) <= width else 1
    if len(load) > width:
        ordered = sorted(load, reverse=True)
        shown = [ordered[at * len(load) // width] for at in range(width)]
    else:
        shown = load
    text = Text()
    for share in (value * len(load) for value in shown):
        height = BARS[max(0, min(len(BARS), round(share * len(BARS) / 2)) - 1)] if share >= bound_of("dead") else "·"
        text.append(height * cells, _shade(share))
    return text


def _shade(share: float) -> str:
    """A colour by how far a multiple of an even share is from 1, the same as in the pictures of `upcycle plot`."""
    if share < 0.25:
        return "bold blue"
    if share < 0.67:
        return "blue"
    return "default" if share < 1.5 else "red" if share < 3 else "bold red"


def _figures(metrics: Metrics) -> RenderableType:
    """Speed, learning rates and gradient norms, a line each."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(min_width=10)
    rows.add_column()
    speed = [f"{metrics['tokens_per_second']:,.0f} tokens/s"] if metrics.get("tokens_per_second") is not None else []
    speed += [f"MFU {metrics['mfu']:.1%}"] if metrics.get("mfu") is not None else []
    speed += [f"{metrics['tokens']:,} tokens"] if metrics.get("tokens") is not None else []
    rows.add_row("speed", "  ".join(speed))
    for row in (FIGURES["lr"], FIGURES["grad_norm"]):
        groups = metrics.get(row.name) or {}
        words = (f"{group} {value:{row.form}}" for group, value in groups.items() if value is not None)
        rows.add_row(row.label, "  ".join(words))
    return rows


def _words(metrics: Metrics) -> Iterator[str]:
    """A step in words."""
    for name, label in {**LOSSES, "eval_loss": FIGURES["eval_loss"].label}.items():
        if metrics.get(name) is not None:
            yield f"{label} {metrics[name]:.4f}"
    if metrics.get("tokens_per_second") is not None:
        yield f"{metrics['tokens_per_second']:,.0f} tokens/s"
    if metrics.get("mfu") is not None:
        yield f"MFU {metrics['mfu']:.1%}"
    if metrics.get("lr"):
        yield f"lr {'/'.join(sorted({f'{rate:.2e}' for rate in metrics['lr'].values()}))}"
    if metrics.get("grad_norm"):
        yield f"gradient {_figure(metrics['grad_norm']['total'], '.3g', '?')}"
    layers = metrics.get("layers") or []
    if layers:
        worst = max(layers, key=lambda layer: float(layer["max_over_mean"]))
        yield f"busiest expert {worst['max_over_mean']:.2f} times even (layer {worst['layer']})"
        yield f"{sum(layer['dead'] for layer in layers)} dead"


def _figure(value: float | None, form: str, missing: str = "") -> str:
    return missing if value is None else f"{value:{form}}"


def _log_to(stream: TextIO) -> None:
    """Let messages go where the panel does not draw over them."""
    for handler in logging.getLogger("upcycle").handlers:
        if type(handler) is logging.StreamHandler and not handler.stream.closed:
            handler.setStream(stream)


def duration(seconds: float) -> str:
    """Return `1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
