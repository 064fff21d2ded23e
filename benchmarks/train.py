"""What upcycle promises about the speed of training, measured. `make bench` runs this too.

python -m benchmarks.train [--pairs N] [--steps N] [--only moe|dense] [--device auto|cpu|cuda] [--markdown] ...

`upcycle train` with all its losses and metrics against transformers' Trainer on the same mixture of experts, and on it
against the dense model of equal active size. `benchmarks/gpu.sh` does it on a GPU in several ways.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Usage, alternate, conversion, remove, run
from benchmarks.report import Figure, Section, listed, megabytes, shown, update
from benchmarks.trainees import DENSE, MOST_STEPS, WIDE

RESULTS = Path(__file__).with_name("results.md")
SKIPPED = 3
"""Steps at the start that do not count."""
LEAST_SPEED = 0.97
SAME_LOSS = 0.02
"""By which the losses of the first step may differ: the balance loss is a mean over layers here, pooled in Trainer."""
DIGITS = {"f32": "f32", "bf16": "autocast"}
"""Data type of upcycle's training -> that of Trainer whose optimizer has as many digits: only then memory compares."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A trainee, and how it is trained."""

    directory: Path
    size: dict[str, Any]
    device: str  # what it is called
    chosen: argparse.Namespace

    @property
    def dtype(self) -> str:
        """In which upcycle trains."""
        return str(self.chosen.dtype or self.size["dtype"])

    @property
    def trainer_dtype(self) -> str:
        """In which Trainer trains."""
        return str(self.chosen.trainer_dtype or self.dtype)

    def argv(self, side: str, model: str) -> list[str]:
        """Return the command of one training."""
        words = [sys.executable, "-m", "benchmarks.steps", side, str(self.directory / model), str(self.directory)]
        words += [
            str(self.directory / f"out-{side}"),
            "--steps",
            str(self.chosen.steps),
            "--device",
            self.chosen.device,
        ]
        words += ["--batch-size", str(self.size["batch_size"]), "--seq-len", str(self.size["seq_len"])]
        words += ["--dtype", self.dtype if side == "upcycle" else self.trainer_dtype]
        words += ["--compile"] if self.chosen.compile else []
        return words if model == WIDE else [*words, "--experts-implementation", self.chosen.experts_implementation]

    def about(self) -> str:
        """Return what was measured, and where."""
        size, chosen = self.size, self.chosen
        how = chosen.experts_implementation + (", compiled" if chosen.compile else "")
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate"))
        sizes = f"{size['layers']} layers of {size['hidden']}/{size['intermediate']}, a vocabulary of {size['vocab']}"
        batch = f"{size['batch_size']} x {size['seq_len']} tokens a step"
        return (
            f"{sizes}, and 8 experts of which a token uses 2, from\n"
            f"`upcycle convert`; {batch}, of one text; AdamW fused, clipped at 1; {how}.\n"
            f"{chosen.steps} steps, each logged, in a process of its own; the first {SKIPPED} do not count. A step\n"
            "lasts from the end of the one before to its own. Nothing is saved.\n"
            f"{self.device}; {versions}."
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What one training took."""

    speed: float  # tokens a second, median over steps
    reported: float | None  # the same as metrics.jsonl has it
    first_loss: float
    peak_bytes: int
    device_peak_bytes: int

    @classmethod
    def of(cls, usage: Usage, bench: Bench) -> "Run":
        """Read what the process printed last; Trainer prints its logs before."""
        said = json.loads(usage.output.splitlines()[-1])
        tokens = bench.size["batch_size"] * bench.size["seq_len"]
        seconds = [after - before for before, after in pairwise(said["ends"])][SKIPPED - 1 :]
        reported = median(said["reported"][SKIPPED:]) if said["reported"] else None
        return cls(tokens / median(seconds), reported, said["losses"][0], usage.peak_bytes, said["device_peak_bytes"])


def against_trainer(bench: Bench, pairs: int) -> Section:
    """Train the mixture of experts with both."""
    argvs = bench.argv("upcycle", "moe"), bench.argv("trainer", "moe")
    about = f"{bench.about()}\nBoth have a balance loss; upcycle's other losses and metrics are all on.\nupcycle in "
    about += f"{bench.dtype}, Trainer in {bench.trainer_dtype}. {pairs} pairs, taking turns in going first."
    section = Section("Training: a mixture of experts, against Trainer", about, list(map(shown, argvs)), [])
    ours, theirs = _measure(bench, argvs, pairs)
    section.figures.extend([*_speeds("upcycle", ours), *_speeds("Trainer", theirs)])
    section.figures.extend(_ratios(ours, theirs, "", LEAST_SPEED))
    section.figures.extend(_memory(bench, ours, theirs))
    losses = ours[0].first_loss, theirs[0].first_loss
    same = abs(losses[0] - losses[1]) < SAME_LOSS
    section.figures.append(
        Figure("loss of step 1, balance included: upcycle, Trainer", listed(losses, 4), "the same", same)
    )
    return section.finish()


def against_dense(bench: Bench, pairs: int) -> Section:
    """Train the mixture of experts and the dense model that uses as many parameters for a token."""
    argvs = bench.argv("upcycle", "moe"), bench.argv("upcycle", WIDE)
    about = "The model above and a llama whose FFN is as wide as the two experts of a token, both by upcycle. "
    about += f"{pairs} pairs."
    section = Section("Training: against the dense model of equal active size", about, list(map(shown, argvs)), [])
    ours, dense = _measure(bench, argvs, pairs)
    section.figures.extend([*_speeds("mixture", ours), *_speeds("dense", dense)])
    section.figures.extend(_ratios(ours, dense, "mixture over dense: ", None))
    peaks = (("mixture", ours), ("dense", dense))
    section.figures.extend(Figure(f"{name}, peak memory, median", _peak(runs)) for name, runs in peaks)
    return section.finish()


def _measure(bench: Bench, argvs: tuple[list[str], list[str]], pairs: int) -> tuple[list[Run], list[Run]]:
    def prepare() -> None:
        for side in ("upcycle", "trainer"):
            remove(bench.directory / f"out-{side}")

    one, other = alternate(*argvs, pairs, prepare)
    prepare()
    return [Run.of(usage, bench) for usage in one], [Run.of(usage, bench) for usage in other]


def _speeds(name: str, runs: Sequence[Run]) -> list[Figure]:
    figures = [
        Figure(f"{name}, tokens/s, median", f"{median(run.speed for run in runs):.0f}"),
        Figure(f"{name}, tokens/s of each run", listed([run.speed for run in runs], 0)),
    ]
    reported = [run.reported for run in runs if run.reported is not None]
    more = [Figure(f"{name}, as metrics.jsonl has it, median", f"{median(reported):.0f}")] if reported else []
    return figures + more


def _ratios(ours: Sequence[Run], others: Sequence[Run], what: str, least: float | None) -> list[Figure]:
    ratios = [one.speed / other.speed for one, other in zip(ours, others, strict=True)]
    middle = median(ratios)
    verdict = ("", None) if least is None else (f"at least {least}", middle >= least)
    return [
        Figure(f"{what}ratio within pairs, median", f"{middle:.3f}", *verdict),
        Figure(f"{what}ratio within each pair", listed(ratios, 3)),
    ]


def _memory(bench: Bench, ours: Sequence[Run], theirs: Sequence[Run]) -> list[Figure]:
    peaks = [median(run.device_peak_bytes or run.peak_bytes for run in runs) for runs in (ours, theirs)]
    comparable = DIGITS[bench.dtype] == bench.trainer_dtype
    verdict = ("no higher than Trainer's", peaks[0] <= peaks[1]) if comparable else ("", None)
    return [
        Figure("upcycle, peak memory, median", megabytes(int(peaks[0])), *verdict),
        Figure("Trainer, peak memory, median", megabytes(int(peaks[1]))),
        Figure("upcycle, peak memory of each run", _listed_peaks(ours)),
        Figure("Trainer, peak memory of each run", _listed_peaks(theirs)),
    ]


def _peak(runs: Sequence[Run]) -> str:
    return megabytes(int(median(run.device_peak_bytes or run.peak_bytes for run in runs)))


def _listed_peaks(runs: Sequence[Run]) -> str:
    return listed([(run.device_peak_bytes or run.peak_bytes) / 1e6 for run in runs], 1) + " MB"


def prepared(chosen: argparse.Namespace) -> Bench:
    """Make what is trained, in processes of their own, unless it is there."""
    made = [sys.executable, "-m", "benchmarks.trainees", str(chosen.dir), chosen.device]
    found = json.loads(run(made).output.splitlines()[-1])
    directory = Path(found["directory"])
    if not (directory / "moe").exists():
        run(conversion(directory / DENSE, directory / "moe"))
    return Bench(directory, found["size"], found["device"], chosen)


def main() -> None:
    """Measure and print, and bring the results up to date, or write Markdown elsewhere."""
    chosen = _parser().parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    chosen.dir.mkdir(parents=True, exist_ok=True)
    bench = prepared(chosen)
    chosen.device = bench.device.split(",")[0]
    parts = {"moe": (against_trainer, chosen.pairs or 7), "dense": (against_dense, chosen.pairs or 3)}
    page: Path = chosen.markdown or RESULTS
    if chosen.markdown:
        page.write_text("", encoding="utf-8")
    for name, (part, pairs) in parts.items():
        if chosen.only in (None, name):
            try:
                update(page, [part(bench, pairs)])  # each when it is there: the next takes minutes
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"a training failed: {shown(error.cmd)}; what it said is above") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("build/bench"), help="where to work (default: build/bench)")
    parser.add_argument("--pairs", type=int, help="runs of each side (default: 7 against Trainer, 3 against dense)")
    parser.add_argument("--steps", type=_steps, default=16, help="of each run (default: 16)")
    parser.add_argument("--only", choices=("moe", "dense"), help="measure one part")
    parser.add_argument("--device", default="auto", help="cpu or cuda (default: what is there)")
    parser.add_argument("--experts-implementation", default="grouped_mm", help="of both sides (default: grouped_mm)")
    parser.add_argument("--compile", action="store_true", help="both sides")
    parser.add_argument("--dtype", choices=("f32", "bf16"), help="of upcycle's run (default: by the device)")
    parser.add_argument("--trainer-dtype", choices=("f32", "bf16", "autocast"), help="of Trainer's (default: the same)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write there, not to the results")
    return parser


def _steps(word: str) -> int:
    number = int(word)
    if not SKIPPED + 1 < number <= MOST_STEPS:
        raise argparse.ArgumentTypeError(f"{SKIPPED + 2} to {MOST_STEPS} steps")
    return number


if __name__ == "__main__":
    main()
