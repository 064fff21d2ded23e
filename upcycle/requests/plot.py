"""The options of `upcycle plot`: which trainings are drawn, and where the pictures go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from upcycle.option import argument, option
from upcycle.requests.checks import check_kinds, require
from upcycle.requests.request import Request

PictureFormat = Literal["png", "svg"]

MAX_RUNS = 7
"""Runs in one figure: as many as there are colours that everybody can tell apart."""


@dataclass(frozen=True, kw_only=True)
class Plot(Request[list[Path]]):
    """Draw the curves of a training and the load of its experts.

    Files of the same names in the output directory are replaced.
    """

    metrics: str = argument("A metrics.jsonl, or the directory of a training.")
    also: tuple[str, ...] = option((), "Another run to draw beside it (repeat for more).", metavar="METRICS")
    out: str | None = option(
        None, "Directory for the pictures; `plots` beside the metrics if not given.", metavar="DIR", recorded=False
    )
    format: PictureFormat = option("png", "Kind of the pictures.")

    def __post_init__(self) -> None:
        """Raise RequestError for more runs than can be told apart."""
        check_kinds(self)
        require(len(self.also) < MAX_RUNS, "also", f"{len(self.also)} further runs", f"at most {MAX_RUNS - 1}")
