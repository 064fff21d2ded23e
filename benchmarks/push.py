"""A push of 2 GB against `hf upload` of the same directory, to the tests' Hub on loopback.

python -m benchmarks.push [--dir DIR] [--pairs N] [--only {lfs,xet}]

Needs 5 GB of disk under DIR.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import models
from benchmarks.convert import RESULTS
from benchmarks.hub import Asked, hub
from benchmarks.measure import UPCYCLE, Usage, read_through, run
from benchmarks.report import Figure, Section, listed, megabytes, shown, update
from tests.hub.access import TOKEN

HF = str(Path(sys.executable).with_name("hf"))
REPO = "someone/model"
MOST = 1.1
ABOUT = """\
`push`: a Mistral of 16 layers of 2048/7168, {size:.2f} GB in {files} files, random weights. The Hub of the tests runs
in a process of its own on the same machine and stores what comes on the same disk; for every run it is new, and so is
HF_HOME; before it the model is read into the page cache. {pairs} pairs, taking turns in going first. The transfer
phase is from the first request for a large file (its place, a token, its bytes) to the commit. After each run the
same command runs again, when there is nothing new."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What one run of a command took, and what the Hub was asked for."""

    usage: Usage
    asked: Asked


Pair = tuple[Upload, Upload]
"""A run, and the same when all was there."""


def against_hf(work: Path, wire: str, pairs: int) -> Section:
    """Time pushes and uploads by LFS or by Xet."""
    model = models.make_random(work / "push", "push")
    commands = {"upcycle": [UPCYCLE, "push", str(model), REPO], "hf": [HF, "upload", REPO, str(model)]}
    weights = [path.stat().st_size for path in model.glob("*.safetensors")]
    about = ABOUT.format(size=sum(weights) / 1e9, files=len(weights), pairs=pairs)
    title = f"A 2 GB push against hf upload, by {wire}"
    section = Section(title, about, [shown(argv) for argv in commands.values()], [])
    found: dict[str, list[Pair]] = {name: [] for name in commands}
    for number in range(-1, pairs):  # the first pair is a warm-up
        for name in sorted(commands, reverse=number % 2 == 0):
            read_through(model)
            runs = _uploads(commands[name], work / "hub", wire)
            if number >= 0:
                found[name].append(runs)
    section.figures.extend(_compared(found["upcycle"], found["hf"]))
    return section.finish()


def _uploads(argv: Sequence[str], place: Path, wire: str) -> Pair:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    os.sync()
    with hub(place / "store") as served:
        _user(served.url, place / "home", wire)
        pair = Upload(run(argv), served.asked()), Upload(run(argv), served.asked())
    shutil.rmtree(place)
    return pair


def _user(url: str, home: Path, wire: str) -> None:
    """Set what the client reads: a token, this Hub, an empty cache, and no bars."""
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_XET_CACHE"):
        os.environ.pop(name, None)
    os.environ |= {
        "HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", **({"HF_HUB_DISABLE_XET": "1"} if wire == "LFS" else {}),
    }  # fmt: skip


def _compared(ours: Sequence[Pair], theirs: Sequence[Pair]) -> list[Figure]:
    """Hold the transfer phases of both against each other."""
    sides = {"upcycle": ours, "hf": theirs}
    transfer = {name: [first.asked.transfer for first, _ in pairs] for name, pairs in sides.items()}
    wall = {name: median(first.usage.seconds for first, _ in pairs) for name, pairs in sides.items()}
    ratio = median(transfer["upcycle"]) / median(transfer["hf"])
    within = [one / other for one, other in zip(transfer["upcycle"], transfer["hf"], strict=True)]
    return [
        Figure("transfer phase of a 2 GB push against hf upload", f"{ratio:.2f}", f"at most {MOST}", ratio <= MOST),
        Figure("transfer phase, ratio within each pair", listed(within, 2)),
        Figure("whole process, ratio of medians", f"{wall['upcycle'] / wall['hf']:.2f}"),
        *(figure for name, pairs in sides.items() for figure in _side(name, pairs)),
    ]


def _side(name: str, pairs: Sequence[Pair]) -> list[Figure]:
    firsts, seconds = zip(*pairs, strict=True)
    cpu = median(one.asked.cpu_seconds / one.asked.transfer for one in firsts)
    return [
        Figure(f"{name}, transfer phase of each run", listed([one.asked.transfer for one in firsts], 1) + " s"),
        Figure(f"{name}, whole process of each run", listed([one.usage.seconds for one in firsts], 1) + " s"),
        Figure(f"{name}, bytes that came", megabytes(max(one.asked.uploaded for one in firsts))),
        Figure(f"{name}, commits", str(max(len(one.asked.commits) for one in firsts))),
        Figure(f"{name}, median CPU", f"{median(one.usage.cpu_seconds for one in firsts):.1f} s"),
        Figure(f"{name}, peak memory", megabytes(max(one.usage.peak_bytes for one in firsts))),
        Figure(f"{name}, CPU of the Hub for a second of transfer, median", f"{cpu:.2f} s"),
        Figure(f"{name}, nothing new, each run", listed([one.usage.seconds for one in seconds], 1) + " s"),
        Figure(f"{name}, nothing new, bytes that came", megabytes(max(one.asked.uploaded for one in seconds))),
    ]


def main() -> None:
    """Measure, print, and put the sections into the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("build/bench"), help="where to work (default: build/bench)")
    parser.add_argument("--pairs", type=int, default=11, help="runs of each side")
    parser.add_argument("--only", choices=("lfs", "xet"), help="measure one way of upload")
    chosen = parser.parse_args()
    chosen.dir.mkdir(parents=True, exist_ok=True)
    wires = [chosen.only.upper()] if chosen.only else ["LFS", "XET"]
    sections = [against_hf(chosen.dir, wire.replace("XET", "Xet"), chosen.pairs) for wire in wires]
    update(RESULTS, sections)
    print(f"\n{RESULTS.name} written")


if __name__ == "__main__":
    main()
