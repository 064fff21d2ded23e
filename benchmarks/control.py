"""Experts against the control: one plain LoRA with as many parameters, on text of several domains.

python -m benchmarks.control DIRECTORY --domain NAME=FILE ... [--base MODEL] [--seeds N] [--steps N] [--attach WORDS]

The last twentieth of every file is held out. Both kinds of adapter start from `upcycle attach`, see the same batches
and are trained by `upcycle train`; the loss of each domain's held-out text is printed for every seed, and as Markdown
at the end: mean and range over the seeds.
"""

import argparse
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.measure import UPCYCLE
from upcycle.adapters.load import attached
from upcycle.pipeline.locate import locate
from upcycle.text.encode import Encoder
from upcycle.text.stream import held_out_blocks

KINDS = {"experts": (), "single LoRA": ("--baseline", "single-lora")}
HELD_OUT = 20  # of which one part is held out
SEQUENCES = 64


def split(domains: dict[str, Path], directory: Path) -> dict[str, tuple[Path, Path]]:
    """Write the text that is trained on and the text that is held out of every domain."""
    parts = {}
    for name, path in domains.items():
        text = path.read_text(encoding="utf-8", errors="replace")
        place = text.rindex("\n", 0, len(text) - len(text) // HELD_OUT) + 1
        parts[name] = (directory / f"{name}.txt", directory / f"{name}-held.txt")
        for target, part in zip(parts[name], (text[:place], text[place:]), strict=True):
            target.write_text(part, encoding="utf-8")
    return parts


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, base: Path, text: Path, length: int) -> float:
    """Return the mean loss of a text's tokens, in nats."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    blocks = held_out_blocks([str(text)], Encoder(tokenizer), seq_len=length, seed=0, fraction=None, limit=SEQUENCES)
    total, count = 0.0, 0
    for block in blocks:
        ids_T, positions_T = (torch.as_tensor(part).long() for part in (block.ids_T, block.position_T))
        logits_TV = model(input_ids=ids_T[None], position_ids=positions_T[None]).logits[0, :-1]
        kept_T = torch.as_tensor(block.target_T)[1:]
        total += float(cross_entropy(logits_TV[kept_T], ids_T[1:][kept_T], reduction="sum"))
        count += int(kept_T.sum())
    return total / count


def losses_of(base: Path, adapter: Path | None, parts: dict[str, tuple[Path, Path]], length: int) -> list[float]:
    """Return the held-out loss of every domain, of the base where there is no adapter."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = (attached(model, adapter) if adapter else model).eval()
    return [held_out_loss(model, base, held, length) for _, held in parts.values()]


def upcycle(*words: str) -> None:
    """Run a command and show it."""
    print("$", shlex.join(["upcycle", *words]), flush=True)
    subprocess.run([UPCYCLE, *words], check=True, capture_output=True)


def trained(kind: str, seed: int, chosen: argparse.Namespace, parts: dict[str, tuple[Path, Path]]) -> Path:
    """Attach and train; return the trained adapter."""
    place = chosen.directory / f"{kind.split()[0]}-{seed}"
    start, out = f"{place}-start", f"{place}-out"
    given = [*shlex.split(chosen.attach), *KINDS[kind], "--seed", str(seed)]
    upcycle("attach", chosen.base, start, *given, "--overwrite")
    data = [word for train, _ in parts.values() for word in ("--data", str(train))]
    train = [*shlex.split(chosen.train), "--max-steps", str(chosen.steps), "--seq-len", str(chosen.seq_len)]
    upcycle("train", start, out, *data, *train, "--seed", str(seed), "--overwrite")
    return Path(out)


def table(domains: Sequence[str], rows: dict[str, list[list[float]]]) -> str:
    """Return means over seeds with their range, as Markdown."""
    lines = [f"| | {' | '.join(domains)} |", "|---" * (len(domains) + 1) + "|"]
    for name, runs in rows.items():
        cells = [f"{mean(cell):.4f} ({min(cell):.4f} to {max(cell):.4f})" for cell in zip(*runs, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train every kind with every seed, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--domain", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--base", default="demo:tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--attach", default="--experts 8 --top-k 2 --rank 4")
    parser.add_argument("--train", default="--batch-size 8 --lr 2e-3")
    chosen = parser.parse_args()
    chosen.directory.mkdir(parents=True, exist_ok=True)
    base = locate(chosen.base)
    parts = split({name: Path(path) for name, _, path in (d.partition("=") for d in chosen.domain)}, chosen.directory)
    rows: dict[str, list[list[float]]] = {"the base": [losses_of(base, None, parts, chosen.seq_len)]}
    for seed in range(chosen.seeds):
        for kind in KINDS:
            found = losses_of(base, trained(kind, seed, chosen, parts), parts, chosen.seq_len)
            rows.setdefault(kind, []).append(found)
            print(kind, seed, " ".join(f"{loss:.4f}" for loss in found), flush=True)
    print(table(list(parts), rows))


if __name__ == "__main__":
    main()
