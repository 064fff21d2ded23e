"""The panel of a training: on a terminal of a fixed size, on a real one, and in a pipe."""

import io
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from upcycle.cli.panel import Panel, duration
from upcycle.cli.trace import LENGTH, Trace, sparkline


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def metrics(step: int, layers: int = 2, **changes: Any) -> dict[str, Any]:
    load = [0.5, 0.25, 0.25, 0.0]
    rows = [
        {
            "layer": number, "load": load, "max_over_min": None, "max_over_mean": 2.0 + number / 100, "entropy": 0.97,
            "dead": 1, "cold": 2,
        }
        for number in range(layers)
    ]  # fmt: skip
    return {
        "step": step, "loss": 4 - step / 100, "balance_loss": 1.05, "importance_loss": None, "z_loss": 4.3,
        "tokens": 2048 * step, "tokens_per_second": 1234.5, "mfu": 0.41,
        "lr": {"router": 3e-4, "experts": 1e-4, "rest": 1e-4}, "grad_norm": {"total": 1.25, "router": 0.05},
        "layers": rows, **changes,
    }  # fmt: skip


DENSE: dict[str, Any] = {
    "balance_loss": None, "z_loss": None, "mfu": None, "lr": {"rest": 1e-4}, "grad_norm": {"total": 1.25},
}  # fmt: skip


def terminal(width: int = 100, height: int = 40) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, _environ={"TERM": "xterm"})


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def last_screen(console: Console) -> str:
    """The last drawing, without its colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written(console).replace("\r", ""))
    return plain[plain.rindex("step", 0, plain.rindex(" gone")) :]


def run(console: Console, steps: int, total: int, of: Callable[[int], dict[str, Any]] = metrics) -> Clock:
    """Watch a run of a second a step."""
    clock = Clock()
    with Panel(console, clock) as panel:
        panel.begin(total, 0)
        for step in range(1, steps + 1):
            clock.now += 1
            panel.step(of(step))
    return clock


# -- a terminal -------------------------------------------------------------------------------------------------------


def test_the_panel_shows_every_figure() -> None:
    console = terminal()
    run(console, 50, 200, lambda step: metrics(step, eval_loss=3.75 if step == 40 else None))
    screen = last_screen(console)
    for shown in (
        "step 50/200", "25%", "2:30 left", "0:50 gone", "3.5000", "held out", "3.7500", "at step 40", "balance",
        "1.0500", "router z", "4.3000", "1,234 tokens/s", "MFU 41.0%", "102,400 tokens", "router 3.00e-04",
        "total 1.25",
    ):  # fmt: skip
        assert shown in screen, shown
    assert "importance" not in screen
    rows = [line.split() for line in screen.splitlines() if "▄" in line and "0.970" in line]
    # half a share is half a bar: .25 of 4 experts is even, .5 is twice that, 0 is a dot
    assert rows == [
        ["0", "██▄▄▄▄··", "inf", "2.00", "0.970", "1", "2"],
        ["1", "██▄▄▄▄··", "inf", "2.01", "0.970", "1", "2"],
    ]


def test_a_cosine_stays_until_the_next_one() -> None:
    def looked_at(step: int) -> dict[str, Any]:
        line = metrics(step)
        if step == 3:
            line["layers"][1]["cosine"] = 0.9876
        return line

    console = terminal()
    run(console, 5, 10, looked_at)
    assert "0.9876" in last_screen(console)


def test_a_dense_model_has_no_layers() -> None:
    console = terminal()
    run(console, 5, 10, lambda step: metrics(step, 0, **DENSE))
    screen = last_screen(console)
    assert "3.9500" in screen
    assert not [word for word in ("layer", "balance", "MFU", "router", "None") if word in screen]


@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 24), (100, 40), (200, 60), (40, 24)])
@pytest.mark.parametrize("experts", [4, 128])
def test_it_fits_the_terminal(width: int, height: int, experts: int) -> None:
    def large(step: int) -> dict[str, Any]:
        line = metrics(step, 48)
        for layer in line["layers"]:
            layer["load"] = [1 / experts] * experts
        return line

    console = terminal(width, height)
    run(console, 3, 10, large)
    lines = last_screen(console).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= height


def test_the_least_even_layers_are_shown_in_their_order() -> None:
    console = terminal(100, 40)
    run(console, 2, 10, lambda step: metrics(step, 48))
    shown = [int(line.split()[0]) for line in last_screen(console).splitlines() if "··" in line]
    assert shown == list(range(36, 48))
    assert "36 more layers are more even than these" in last_screen(console)


def test_notes_stay_readable_and_old_ones_go_up() -> None:
    console = terminal()
    with Panel(console, Clock()) as panel:
        panel.begin(100, 0)
        for step in range(1, 10):
            panel.step(metrics(step))
            panel.note(f"checkpoint-{step} saved")
    screen, everything = last_screen(console), written(console)
    assert [step for step in range(1, 10) if f"checkpoint-{step} saved" in screen] == [4, 5, 6, 7, 8, 9]
    for step in range(1, 4):
        assert f"checkpoint-{step} saved" in everything


def test_a_note_is_no_command_to_the_terminal() -> None:
    for console in (terminal(), pipe()):
        with Panel(console, Clock()) as panel:
            panel.begin(10, 0)
            panel.note("a \x1b[2J[red]file[/red]")
        assert "\x1b[2J[red]" not in written(console)
        assert "\\x1b[2J[red]file[/red]" in written(console)


def test_what_is_no_number_does_not_stop_the_panel() -> None:
    console = terminal()
    run(console, 4, 10, lambda step: metrics(step, loss=float("nan") if step > 2 else 3.0))
    assert "step 4/10" in last_screen(console)


PROGRAM = """
import logging, sys
from tests.cli.test_panel import metrics
from upcycle.cli.panel import Panel

logging.getLogger("upcycle").addHandler(logging.StreamHandler())
with Panel() as panel:
    panel.begin(20, 0)
    for step in range(1, 21):
        panel.step(metrics(step))
        if step == 10:
            panel.note("checkpoint-10 saved")
            logging.getLogger("upcycle").warning("a warning in between")
logging.getLogger("upcycle").warning("and one after")
print("done")
"""


def on_a_terminal(program: str) -> tuple[str, str]:
    """Run a program whose standard error is a terminal; return its standard output and what the terminal got."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40", "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as child:
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            shown += piece
        assert child.stdout is not None
        out = child.stdout.read().decode()
    os.close(ours)
    assert child.returncode == 0, shown.decode()
    return out, shown.decode()


def test_on_a_real_terminal() -> None:
    out, shown = on_a_terminal(PROGRAM)
    assert out == "done\n"
    assert "\x1b[?25l" in shown  # the cursor is hidden meanwhile
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "step 20/20" in plain
    assert plain.count("a warning in between") == 1
    assert plain.index("a warning in between") < plain.rindex(
        "step 20/20"
    )  # above the panel, not under its next drawing
    assert plain.rstrip().endswith("and one after")
    assert "checkpoint-10 saved" in plain


# -- a pipe -----------------------------------------------------------------------------------------------------------


def test_lines_in_a_pipe() -> None:
    console = pipe()
    run(console, 300, 300)
    lines = written(console).splitlines()
    numbers = [int(line.split()[1].split("/")[0]) for line in lines]
    assert numbers == [1, *range(11, 300, 10), 300]
    assert lines[1] == (
        "step 11/300  loss 3.8900  balance 1.0500  router z 4.3000  1,234 tokens/s  MFU 41.0%  lr 1.00e-04/3.00e-04  "
        "gradient 1.25  busiest expert 2.01 times even (layer 1)  2 dead  4:49 left"
    )


def test_a_long_run_writes_a_short_log() -> None:
    console = pipe()
    run(console, 20_000, 20_000, lambda step: metrics(step, 0, **DENSE))
    assert 100 <= len(written(console).splitlines()) <= 102


def test_slow_steps_write_a_line_each() -> None:
    console, clock = pipe(), Clock()
    with Panel(console, clock) as panel:
        panel.begin(100_000, 0)
        for step in range(1, 6):
            clock.now += 601
            panel.step(metrics(step))
    assert len(written(console).splitlines()) == 5


def test_the_last_step_of_an_interrupted_run_is_told() -> None:
    console = pipe()

    def interrupted() -> None:
        with Panel(console, Clock()) as panel:
            panel.begin(300, 40)
            for step in range(41, 45):
                panel.step(metrics(step))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [line.split()[1] for line in written(console).splitlines()] == ["41/300", "44/300"]


def test_all_notes_are_in_a_pipe_unbroken() -> None:
    console = pipe()
    text = "layer 3 is collapsing " * 10
    with Panel(console, Clock()) as panel:
        panel.begin(10, 0)
        panel.step(metrics(1))
        panel.note(text)
    assert f"step 1: {text}".rstrip() in written(console)
    assert "\x1b" not in written(console)


def test_a_terminal_that_cannot_draw_gets_lines() -> None:
    dumb = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "dumb"})
    run(dumb, 3, 3)
    assert [line.split()[1] for line in written(dumb).splitlines()] == ["1/3", "3/3"]


# -- figures ----------------------------------------------------------------------------------------------------------


def test_time_that_is_left_follows_the_pace_of_the_last_steps() -> None:
    """The first step takes a minute, the others a second: after 60 more, 100 steps take 100 seconds."""
    console, clock = pipe(), Clock()
    with Panel(console, clock) as panel:
        panel.begin(161, 0)
        for step in range(1, 62):
            clock.now += 60 if step == 1 else 1
            panel.step(metrics(step))
    assert written(console).splitlines()[-1].endswith("  1:40 left")


def test_duration() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3599, 3600, 90061)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "25:01:01",
    ]


def test_a_trace_keeps_the_whole_course_in_a_line() -> None:
    trace = Trace()
    for value in range(100_000):
        trace.add(float(value))
        assert len(trace.values) <= LENGTH
    assert trace.last == 99_999
    assert trace.smooth == pytest.approx(99_999 - 19)  # 1 / .05 - 1 behind a straight line
    assert trace.values == sorted(trace.values)
    assert (trace.values[0] < 5000, trace.values[-1] > 95_000) == (True, True)


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 3.5, 7]) == "▁▂▃▅█"  # 3.5 rounds to the even 4
    assert (sparkline([]), sparkline([2.0, 2.0])) == ("", "▁▁")
