"""One command of upcycle as data: its request, its function, and how it links with the steps of a recipe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from upcycle.requests.request import Request

Reports = Literal["nothing", "bytes", "steps", "text"]
"""What a command's function tells while it works: bytes that are done, steps of a training, pieces of text."""


@dataclass(frozen=True, slots=True)
class Command:
    """One row of `upcycle.requests.commands`."""

    name: str
    request: type[Request[Any]]
    function: str  # MODULE:NAME, imported when it is first called
    example: str  # a command line, for --help
    reads: tuple[str, ...] = ()  # options that name models, adapters or trainings
    texts: tuple[str, ...] = ()  # options that name files of text
    gives: Mapping[str, str] = field(default_factory=dict)
    """Option that later steps of a recipe may leave out -> the option of this step that has its value. One that gives
    `dense` brings another dense model, and what the steps before it gave is no longer taken."""
    remembers: bool = False  # a recipe that is run again skips it when all that it reads and wrote is unchanged
    publishes: str | None = None  # option that names the repository on the Hub that it writes
    reports: Reports = "nothing"
    doing: str = ""  # word beside the bar of a command that reports bytes

    def load(self) -> Callable[..., Any]:
        """Import and return the function; it takes the request, and the listener of what it reports."""
        module, name = self.function.split(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function
