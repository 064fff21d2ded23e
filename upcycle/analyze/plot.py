"""Draws all pictures of one or several trainings into a directory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from upcycle.analyze import curves, heatmaps
from upcycle.analyze.history import History, find_metrics, read_history
from upcycle.analyze.style import save, styled
from upcycle.errors import InputError
from upcycle.requests.plot import Plot

PLOTS = "plots"
"""Directory beside the metrics, where none is given."""


def plot(request: Plot) -> list[Path]:
    """Draw what a request asks for and return the pictures' paths.

    Raises InputError for metrics that are absent or damaged, before anything is written, and for an output directory
    that cannot be.
    """
    paths = [find_metrics(given) for given in (request.metrics, *request.also)]
    runs = [read_history(path, label) for path, label in zip(paths, _labels(paths), strict=True)]
    out = Path(request.out).expanduser() if request.out is not None else paths[0].parent / PLOTS
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", where=out, hint="choose another with --out") from None
    with styled():
        return [save(figure, out / f"{name}.{request.format}") for name, figure in _figures(runs) if figure]


def _figures(runs: Sequence[History]) -> Iterator[tuple[str, Figure | None]]:
    """Every picture with its name; those of one run alone are numbered from the second run on."""
    yield "losses", curves.draw_losses(runs)
    yield "router-losses", curves.draw_router_losses(runs)
    yield "optimizer", curves.draw_optimizer(runs)
    yield "speed", curves.draw_speed(runs)
    yield "layers", curves.draw_layers(runs)
    for number, run in enumerate(runs, 1):
        suffix = f"-{number}" if number > 1 else ""
        yield f"load{suffix}", heatmaps.draw_last_load(run)
        yield f"load-over-steps{suffix}", heatmaps.draw_load_over_steps(run)


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart: names of directories, or of files in one directory."""
    parts = [path.resolve().parts for path in paths]
    ends = [part[:-1] for part in parts] if len({part[:-1] for part in parts}) == len(parts) else parts
    for length in range(1, max(map(len, ends)) + 1):
        labels = ["/".join(end[-length:]) for end in ends]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{'/'.join(end[-1:])} ({number})" for number, end in enumerate(ends, 1)]  # a run beside itself
