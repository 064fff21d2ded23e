"""Shows on a terminal how work goes on: a bar for bytes, a panel for a training, text as it is written."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from upcycle.cli.panel import Panel
    from upcycle.pipeline.stages import Start


class Terminal:
    """The `upcycle.pipeline.stages.Display` of the command line."""

    def progress(self, what: str) -> "AbstractContextManager[Start]":
        """Return a bar of bytes with the word `what` beside it."""
        return progress_bar(what)

    def training(self) -> "AbstractContextManager[Panel]":
        """Return the panel of a training."""
        from upcycle.cli.panel import Panel

        return Panel()

    def write(self, piece: str) -> None:
        """Print what a model writes, as it comes."""
        click.echo(piece, nl=False)


@contextmanager
def progress_bar(what: str) -> "Iterator[Start]":
    """Yield `start(total_bytes)`, which shows the bar and returns what is told the bytes of every step.

    In a pipe there is no bar, and on a terminal none before `start` is called.
    """
    if not sys.stderr.isatty():
        yield lambda _total: lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    with ExitStack() as shown:

        def start(total: int) -> Callable[[int], None]:
            shown.enter_context(progress)
            task = progress.add_task(what, total=total)
            return lambda count: progress.advance(task, count)

        yield start
