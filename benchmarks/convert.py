"""What upcycle promises about time, memory and disk, measured. `make bench` runs this and writes results.md.

python -m benchmarks.convert [--dir DIR] [--pairs N] [--only {cp,peers,xfs,start,noise}]

Needs 25 GB of disk under DIR. The XFS part needs root, mkfs.xfs and loop devices, the comparison with mergekit-moe a
package index or an environment made earlier; both say so where they cannot be had.
"""

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import models, xfs
from benchmarks.measure import UPCYCLE, Usage, alternate, conversion, median_wall, read_through, remove, run
from benchmarks.peers import against_mergekit
from benchmarks.report import Figure, Section, head, listed, megabytes, shown, update
from benchmarks.start import start_up

RESULTS = Path(__file__).with_name("results.md")
IMAGE_BYTES = 16 * 2**30
"""Of the XFS image, which is sparse: room for the output even if no block of it were shared."""


def against_cp(work: Path, pairs: int) -> Section:
    """Time a conversion against `cp -r` of its output."""
    dense, moe, reference = models.make_bench(work / "dense"), work / "moe", work / "reference"
    convert, cp = conversion(dense, moe), ["cp", "-r", str(reference), str(moe)]

    def prepare() -> None:
        remove(moe)
        read_through(dense)
        read_through(reference)

    section = Section(
        "A 1.57 GB Mistral to 8 experts, against cp",
        "`dense`: 12 layers of 2048/7168, bfloat16, in 4 files. `reference`: an earlier output, 8.97 GB. Before every\n"
        f"run `moe` is removed and both are read into the page cache. {pairs} pairs, taking turns in going first.",
        [f"{shown(convert)}; sync", f"{shown(cp)}; sync"],
        [],
    )
    remove(reference)
    run(conversion(dense, reference))
    alternate(convert, cp, 1, prepare)  # warm-up
    section.figures.extend(_compared(*alternate(convert, cp, pairs, prepare)))
    remove(moe)
    remove(reference)
    return section.finish()


def _compared(ours: Sequence[Usage], theirs: Sequence[Usage]) -> list[Figure]:
    wall, cp_wall = median_wall(ours), median_wall(theirs)
    ratios = [one.seconds / other.seconds for one, other in zip(ours, theirs, strict=True)]
    peak = max(usage.peak_bytes for usage in ours)
    return [
        Figure("upcycle, median wall", f"{wall:.2f} s"),
        Figure("cp, median wall", f"{cp_wall:.2f} s"),
        Figure("ratio of medians", f"{wall / cp_wall:.2f}", "at most 1.10", wall <= 1.1 * cp_wall),
        Figure("ratio within pairs, median", f"{median(ratios):.2f}"),
        Figure("ratio within each pair", listed(ratios, 2)),
        Figure("upcycle, wall of each run", listed([usage.seconds for usage in ours], 1) + " s"),
        Figure("cp, wall of each run", listed([usage.seconds for usage in theirs], 1) + " s"),
        Figure("upcycle, median CPU", f"{median(usage.cpu_seconds for usage in ours):.2f} s"),
        Figure("cp, median CPU", f"{median(usage.cpu_seconds for usage in theirs):.2f} s"),
        Figure("upcycle, peak memory", megabytes(peak), "under 100 MB", peak < 100e6),
    ]


def on_xfs(work: Path) -> Section:
    """Convert where copies need neither time nor disk."""
    title = "XFS with reflinks"
    about = (
        "In an image file on a loop device. `dense` is the model above, `sparse` has the headers of Mistral-7B and\n"
        "holes for its weights: it shows what calls and files cost, `dense` shows what real blocks add."
    )
    reason = xfs.obstacle()
    if reason:
        return Section(title, about, [], [Figure("skipped", reason)]).finish()
    with xfs.mounted(work, IMAGE_BYTES) as mount:
        shutil.copytree(models.make_bench(work / "dense"), mount / "dense")
        models.write_sparse(mount / "sparse", models.MISTRAL_7B)
        commands = [conversion(mount / "dense", mount / "moe"), conversion(mount / "sparse", mount / "mixtral")]
        section = Section(title, about, [f"{shown(argv)}; sync" for argv in commands], [])
        section.figures.extend(_shared(mount, commands[0]))
        section.figures.append(_sparse(mount, commands[1]))
    return section.finish()


def _shared(mount: Path, convert: Sequence[str]) -> list[Figure]:
    before = xfs.disk_used(mount)
    seconds = run(convert, sync=True).seconds
    extra = xfs.disk_used(mount) - before
    shared, total = xfs.shared_expert_bytes(mount / "moe")
    return [
        Figure("dense: expert bytes in shared blocks", f"{shared / total:.2%}", "at least 95%", shared >= 0.95 * total),
        Figure("dense: extra disk", f"{megabytes(extra)} for {total / 1e9:.2f} GB of experts"),
        Figure("dense: wall", f"{seconds:.2f} s"),
    ]


def _sparse(mount: Path, convert: Sequence[str]) -> Figure:
    seconds = run(convert, sync=True).seconds
    size = sum(path.stat().st_size for path in (mount / "mixtral").iterdir())
    return Figure(f"sparse: wall for {size / 1e9:.1f} GB of output", f"{seconds:.2f} s", "under 10 s", seconds < 10)


def with_noise(work: Path) -> Section:
    """Hold the memory of a conversion that computes its experts against the estimate of its plan."""
    dense, moe = models.make_bench(work / "dense"), work / "moe"
    plan = [UPCYCLE, "plan", str(dense), "--experts", "8", "--noise", "0.1", "--json"]
    convert = [*conversion(dense, moe), "--noise", "0.1"]
    section = Section("Memory with noise", "Experts are computed, not copied.", [shown(plan), shown(convert)], [])
    estimate = json.loads(run(plan).output)["memory_bytes"]["convert"]
    remove(moe)
    usage = run(convert)
    remove(moe)
    section.figures.append(Figure("estimate of the plan", megabytes(estimate)))
    within = usage.peak_bytes <= estimate
    section.figures.append(Figure("peak memory", megabytes(usage.peak_bytes), "at most the estimate", within))
    section.figures.append(Figure("wall", f"{usage.seconds:.0f} s"))
    return section.finish()


def main() -> None:
    """Measure and print; write the results unless only a part was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("build/bench"), help="where to work (default: build/bench)")
    parser.add_argument("--pairs", type=int, help="runs of each side (default: 5 against cp, 3 against mergekit)")
    parser.add_argument(
        "--only", choices=("cp", "peers", "xfs", "start", "noise"), help="measure one part, write no results"
    )
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unmount and clean up, as after Ctrl-C
    parts: dict[str, Callable[[Path], Section]] = {
        "cp": partial(against_cp, pairs=chosen.pairs or 5), "peers": partial(against_mergekit, pairs=chosen.pairs or 3),
        "xfs": on_xfs, "start": start_up, "noise": with_noise,
    }  # fmt: skip
    chosen.dir.mkdir(parents=True, exist_ok=True)
    sections = [part(chosen.dir) for name, part in parts.items() if chosen.only in (None, name)]
    if not chosen.only:
        update(RESULTS, sections, head(chosen.dir))
        print(f"\n{RESULTS.name} written")


if __name__ == "__main__":
    main()
