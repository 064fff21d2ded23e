"""What upcycle promises about adapter experts, measured. `make bench` runs this too.

python -m benchmarks.adapters [--pairs N] [--steps N] [--only training|exports] [--device cpu|cuda] ...

Eight experts of rank 16 against one plain LoRA of peft with as many parameters (`attach --baseline single-lora`), on
SmolLM2-135M in float32, 2 x 512 tokens; and what each form of the trained experts takes on disk.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.measure import UPCYCLE, Usage, alternate, run
from benchmarks.report import Figure, Section, listed, megabytes, shown, update

RESULTS = Path(__file__).with_name("results.md")
BASE = "build/assets/SmolLM2-135M-Instruct.gguf"
SKIPPED = 2
"""Steps at the start that do not count."""
BATCH, LENGTH = 2, 512
LEAST_SPEED, MOST_MEMORY = 0.6, 1.25

EXPORTS = {"lora": ("full",), "bottleneck": ("full", "compact")}
"""Type of experts -> what they are merged to."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one training took."""

    speed: float  # tokens a second, median over steps
    above_start: int  # bytes
    parameters: int

    @classmethod
    def of(cls, usage: Usage) -> "Run":
        """Read what the process printed last."""
        said = json.loads(usage.output.splitlines()[-1])
        seconds = [after - before for before, after in pairwise(said["ends"])][SKIPPED - 1 :]
        return cls(BATCH * LENGTH / median(seconds), said["above_start"], said["parameters"])


def training(chosen: argparse.Namespace) -> Section:
    """Train experts and the plain LoRA in the same loop."""
    experts, single = (str(chosen.dir / name) for name in ("experts", "single"))
    attach = [UPCYCLE, "attach", chosen.base, "--overwrite", "--experts", "8", "--top-k", "2", "--rank", "16"]
    run([*attach, experts])
    run([*attach, single, "--baseline", "single-lora"])
    argvs = _argv(chosen, experts), _argv(chosen, single)
    about = (
        f"SmolLM2-135M, float32, {BATCH} x {LENGTH} tokens a step, {chosen.steps} steps of which the first {SKIPPED}\n"
        f"do not count, AdamW, in the same plain loop, each in a process of its own; {chosen.device}. Memory is that\n"
        f"above the start, when model and adapter are loaded. {chosen.pairs} pairs, taking turns in going first."
    )
    commands = [shown([*attach, experts]), shown([*attach, single, "--baseline", "single-lora"]), *map(shown, argvs)]
    section = Section("Adapter experts, against one LoRA of as many parameters", about, commands, [])
    ours, theirs = ([Run.of(usage) for usage in usages] for usages in alternate(*argvs, chosen.pairs, lambda: None))
    for name, runs in (("experts", ours), ("LoRA", theirs)):
        section.figures.extend([
            Figure(f"{name}, trained parameters", f"{runs[0].parameters:,}"),
            Figure(f"{name}, tokens/s of each run", listed([one.speed for one in runs], 0)),
            Figure(f"{name}, memory above start, median", megabytes(int(median(one.above_start for one in runs)))),
        ])  # fmt: skip
    speeds, memories = (
        [getattr(one, what) / getattr(other, what) for one, other in zip(ours, theirs, strict=True)]
        for what in ("speed", "above_start")
    )
    speed, memory = median(speeds), median(memories)
    section.figures.extend([
        Figure("tokens/s, ratio within each pair", listed(speeds, 3)),
        Figure("tokens/s, ratio, median", f"{speed:.3f}", f"at least {LEAST_SPEED}", speed >= LEAST_SPEED),
        Figure(
            "memory above start, ratio, median", f"{memory:.3f}", f"at most {MOST_MEMORY}", memory <= MOST_MEMORY,
        ),
    ])  # fmt: skip
    return section.finish()


def _argv(chosen: argparse.Namespace, adapter: str) -> list[str]:
    words = [
        sys.executable,
        "-m",
        "benchmarks.adapter_steps",
        str(chosen.located),
        adapter,
        str(chosen.dir / "text.txt"),
    ]
    return [
        *words, "--steps", str(chosen.steps), "--batch-size", str(BATCH), "--seq-len", str(LENGTH), "--device",
        chosen.device,
    ]  # fmt: skip


def exports(chosen: argparse.Namespace) -> Section:
    """Write every form of experts that were trained for two steps."""
    about = "8 experts of rank or width 16, trained for two steps; bfloat16, as the base has it. Bytes of the weights."
    shown_commands: list[str] = []
    section = Section("Adapter experts: what each export takes on disk", about, shown_commands, [])
    section.figures.append(Figure("the base", megabytes(_weights(chosen.located))))
    for expert_type, forms in EXPORTS.items():
        start, trained = (str(chosen.dir / f"{expert_type}-{name}") for name in ("start", "trained"))
        commands = [[UPCYCLE, "attach", chosen.base, start, "--expert-type", expert_type, "--overwrite"]]
        few = ["--max-steps", "2", "--seq-len", "64", "--batch-size", "1", "--lr", "0.01", "--overwrite"]
        commands.append([UPCYCLE, "train", start, trained, "--data", str(chosen.dir / "text.txt"), *few])
        outs = {form: chosen.dir / f"{expert_type}-{form}" for form in forms}
        commands += [[UPCYCLE, "merge", trained, str(out), "--to", form, "--overwrite"] for form, out in outs.items()]
        for argv in commands:
            run(argv)
        shown_commands.extend(map(shown, commands))
        section.figures.append(Figure(f"{expert_type}: the adapter, float32", megabytes(_weights(Path(trained)))))
        section.figures.extend(
            Figure(f"{expert_type}: merged, {form}", megabytes(_weights(out))) for form, out in outs.items()
        )
    return section.finish()


def _weights(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def main() -> None:
    """Measure and print, and bring the results up to date, or write Markdown elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("build/bench/adapters"), help="where to work")
    parser.add_argument("--base", default=BASE, help=f"the model (default: {BASE})")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side (default: 5)")
    parser.add_argument("--steps", type=int, default=8, help="of each run (default: 8)")
    parser.add_argument("--only", choices=("training", "exports"), help="measure one part")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write there, not to the results")
    chosen = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    chosen.dir.mkdir(parents=True, exist_ok=True)
    locate = f"from upcycle.pipeline.locate import locate; print(locate({chosen.base!r}))"
    chosen.located = Path(run([sys.executable, "-c", locate]).output.splitlines()[-1])  # in a process of its own
    _write_text(chosen.dir / "text.txt")
    page: Path = chosen.markdown or RESULTS
    for name, part in {"training": training, "exports": exports}.items():
        if chosen.only in (None, name):
            update(page, [part(chosen)])


def _write_text(path: Path) -> None:
    """Modules of the standard library: about 400 kB."""
    library = Path(argparse.__file__).parent
    names: Sequence[str] = ("argparse.py", "ast.py", "datetime.py", "doctest.py", "inspect.py")
    path.write_text("\n".join((library / name).read_text(encoding="utf-8") for name in names), encoding="utf-8")


if __name__ == "__main__":
    main()
