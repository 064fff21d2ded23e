"""How long `--help` takes, and a plan from headers alone."""

import json
import shutil
from pathlib import Path

from benchmarks import models
from benchmarks.measure import UPCYCLE, median_wall, run
from benchmarks.report import Figure, Section, shown
from upcycle.cli.main import names

RUNS = 10
TOTAL_7B, ACTIVE_7B = 46_702_792_704, 12_879_925_248
"""Parameters of Mixtral-8x7B-v0.1: Mistral-7B with eight experts, two of them active."""


def start_up(work: Path) -> Section:
    """Time the help of every command, and a plan for the 7B model."""
    sparse = work / "sparse"
    models.write_sparse(sparse, models.MISTRAL_7B)
    plan = [UPCYCLE, "plan", str(sparse), "--experts", "8", "--json"]
    section = Section(
        "Help and plan",
        f"Median of {RUNS} runs each. `sparse` has the headers of Mistral-7B and holes for its weights.",
        ["upcycle [COMMAND] --help", shown(plan)],
        [_help(words) for words in ([], *([name] for name in names()))],
    )
    section.figures.extend(_plan(plan))
    shutil.rmtree(sparse)
    return section.finish()


def _help(words: list[str]) -> Figure:
    argv = [UPCYCLE, *words, "--help"]
    seconds = median_wall([run(argv) for _ in range(RUNS)])
    return Figure(shown(argv), f"{seconds:.3f} s", "under 0.2 s", seconds < 0.2)


def _plan(argv: list[str]) -> list[Figure]:
    usages = [run(argv) for _ in range(RUNS)]
    seconds, found = median_wall(usages), json.loads(usages[0].output)["parameters"]
    return [
        Figure("upcycle plan", f"{seconds:.3f} s", "under 1 s", seconds < 1),
        Figure("total parameters", f"{found['total']:,}", f"{TOTAL_7B:,}", found["total"] == TOTAL_7B),
        Figure("active parameters", f"{found['active']:,}", f"{ACTIVE_7B:,}", found["active"] == ACTIVE_7B),
    ]
