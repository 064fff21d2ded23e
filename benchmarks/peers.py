"""The conversion against mergekit-moe, which makes the same kind of model by way of torch."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks import environment, models
from benchmarks.measure import UPCYCLE, Usage, alternate, conversion, median_wall, read_through, remove, run
from benchmarks.report import Figure, Section, listed, megabytes, shown

REQUIREMENTS = Path(__file__).with_name("mergekit.txt")
TOKENIZER = Path(__file__).parent.parent / "upcycle" / "data" / "tiny"
"""mergekit-moe does not start without a tokenizer; the one of demo:tiny costs it least."""
EXPERTS = 8
TIMES_FASTER = 3
HELP_RUNS = 5
OPTIONS = ("--async-write", "--write-threads", "2", "--out-shard-size", "1B")
"""With these mergekit-moe was fastest on two cores: it computes one file while it writes others.

Tried on a busy machine: its defaults (1.6 times as long, medians of 3 and 4 runs), one writing thread, files of half a
gigabyte, one thread for torch. Its memory was least, 3.0 GB, with `1B` and none of the others. `1B` are bytes, whatever
its help says. `--lazy-unpickle` is about pickles, and the source has none.
"""
TITLE = "The same against mergekit-moe 0.1.5"
ABOUT = """\
`dense` is the model above and the tokenizer of demo:tiny, for mergekit-moe needs one. `moe.yml` says gate_mode random,
bfloat16, and {experts} times `dense` as an expert. mergekit-moe is one process, in an environment of its own
(`mergekit.txt`), with the fastest of the options that were tried. Before every run both outputs are removed and `dense`
is read into the page cache. {pairs} pairs, taking turns in going first. Peak memory counts mapped files too.

Both outputs hold the same experts. In mergekit-moe's those of a layer are fused into `mlp.experts.gate_up_proj` and
`mlp.experts.down_proj`, routers are from N(0, 1), the tokenizer is written anew, and config.json has `sliding_window`
null (4096 in `dense`) and `rope_theta` in `rope_parameters` only."""


def against_mergekit(work: Path, pairs: int) -> Section:
    """Time a conversion against mergekit-moe's of the same model, and `--help` against its help."""
    mergekit = environment.command(work / "mergekit", REQUIREMENTS, "mergekit-moe")
    if mergekit is None:
        skipped = Figure("skipped", "pip could not install mergekit.txt; what it said is on the terminal")
        return Section(TITLE, "Not measured.", [], [skipped]).finish()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # no look at the Hub, no progress bars
    scratch = work / "peer"
    shutil.rmtree(scratch, ignore_errors=True)
    dense = _with_tokenizer(models.make_bench(work / "dense"), scratch / "dense")
    moe, fused = scratch / "moe", scratch / "fused"
    ours, theirs = conversion(dense, moe), _merge(mergekit, dense, fused)

    def prepare() -> None:
        remove(moe)
        remove(fused)
        read_through(dense)

    commands = [f"{shown(ours)}; sync", f"{shown(theirs)}; sync", "upcycle --help", "mergekit-moe --help"]
    section = Section(TITLE, ABOUT.format(experts=EXPERTS, pairs=pairs), commands, [])
    alternate(ours, theirs, 1, prepare)  # warm-up
    section.figures.extend(_compared(*alternate(ours, theirs, pairs, prepare)))
    section.figures.extend(_helps(mergekit))
    shutil.rmtree(scratch)
    return section.finish()


def _with_tokenizer(model: Path, directory: Path) -> Path:
    """Make `directory` hold the files of `model`, which take no disk there, and a tokenizer."""
    directory.mkdir(parents=True)
    for path in model.iterdir():
        os.link(path, directory / path.name)
    for path in TOKENIZER.glob("tokenizer*"):
        shutil.copy(path, directory)
    return directory


def _merge(mergekit: str, dense: Path, out: Path) -> list[str]:
    """Return the command that makes `out` of copies of `dense`; its configuration is written beside `dense`."""
    config = dense.with_name("moe.yml")
    experts = [{"source_model": str(dense)}] * EXPERTS
    fields = {"base_model": str(dense), "gate_mode": "random", "dtype": "bfloat16", "experts": experts}
    config.write_text(json.dumps(fields), encoding="utf-8")  # JSON is YAML
    return [mergekit, str(config), str(out), *OPTIONS]


def _compared(ours: Sequence[Usage], theirs: Sequence[Usage]) -> list[Figure]:
    times = median_wall(theirs) / median_wall(ours)
    ratios = [other.seconds / one.seconds for one, other in zip(ours, theirs, strict=True)]
    target = f"at least {TIMES_FASTER}"
    return [
        *_usage("upcycle", ours),
        *_usage("mergekit-moe", theirs),
        Figure("mergekit-moe over upcycle, ratio of medians", f"{times:.1f}", target, times >= TIMES_FASTER),
        Figure("mergekit-moe over upcycle, within each pair", listed(ratios, 1)),
    ]


def _usage(name: str, usages: Sequence[Usage]) -> list[Figure]:
    return [
        Figure(f"{name}, median wall", f"{median_wall(usages):.2f} s"),
        Figure(f"{name}, wall of each run", listed([usage.seconds for usage in usages], 1) + " s"),
        Figure(f"{name}, median CPU", f"{median(usage.cpu_seconds for usage in usages):.2f} s"),
        Figure(f"{name}, peak memory", megabytes(max(usage.peak_bytes for usage in usages))),
    ]


def _helps(mergekit: str) -> list[Figure]:
    """Time both helps, taking turns, after a round that does not count."""
    commands = [UPCYCLE, "--help"], [mergekit, "--help"]
    rounds = [[run(argv) for argv in commands] for _ in range(1 + HELP_RUNS)]
    return [
        Figure(f"{shown(argv)}, median of {HELP_RUNS}", f"{median_wall(usages):.3f} s")
        for argv, usages in zip(commands, zip(*rounds[1:], strict=True), strict=True)
    ]
