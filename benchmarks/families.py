"""Every pair of families on a model of 1 GB: how long a conversion takes against `cp` of its output, and its memory.

python -m benchmarks.families [--dir DIR] [--pairs N] [--only DENSE ...]

Needs 8 GB of disk under DIR. A model is named by its type; with --only no results are written. `python -m
benchmarks.families --write DENSE --dir DIR` writes the model alone.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import models
from benchmarks.convert import RESULTS
from benchmarks.measure import UPCYCLE, Usage, alternate, median_wall, read_through, remove, run
from benchmarks.report import Figure, Section, listed, megabytes, update
from upcycle.checkpoint.header import tensor_bytes
from upcycle.families.config import sizes_of
from upcycle.families.find import fitting
from upcycle.families.match import Match
from upcycle.families.pairs import PAIRS, Pair

MODEL_BYTES = 1_000_000_000
EXPERTS = 4
"""The output is then near 3 GB: the start of the program, a quarter of a second, is a tenth of the time or less."""
MOST_RATIO, MOST_BYTES = 1.1, 150_000_000
COPIED = 0.01
"""Where less of the output is computed, all is copied: routers and biases have to be made."""

SIZES: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "head_dim": 128,
    "num_key_value_heads": 4, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""Of every model; what else its class has is as the class has it by default."""

OWN: dict[str, dict[str, Any]] = {
    "gemma4_text": {"vocab_size_per_layer_input": 32000, "num_kv_shared_layers": 4, "use_double_wide_mlp": True},
    "granitemoehybrid": {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 5632},
    "olmo3": {"layer_types": ["full_attention"]},
    "youtu": {"head_dim": ...},
}
"""Fields of some models; `...` leaves one out, and a list stands for one of its kind for every layer."""


ABOUT = """\
Each dense model has hidden size 2048, FFN width 5632, a vocabulary of 32,000 and as many layers as make 1 GB of
bfloat16; it becomes {experts} experts, so few that the disk holds two outputs. Before every run the output is removed,
and what is read is in the page cache. {pairs} pairs, taking turns in going first. Measured: the ratio of wall times,
median (each); the median wall of cp; the peak memory of upcycle."""


@dataclass(frozen=True, eq=False)
class Dense:
    """The smallest model of a family with `SIZES` that has `MODEL_BYTES`."""

    model_type: str

    @cache  # noqa: B019 - there is one in this process
    def config(self) -> dict[str, Any]:
        """Return what the stock class writes as config.json."""
        return next(config for config in map(self._config, count(2)) if self._nbytes(config) >= MODEL_BYTES)

    def tensors(self) -> list[models.Entry]:
        """Return every tensor, layer by layer."""
        return self._tensors(self.config())

    def _config(self, layers: int) -> dict[str, Any]:
        from transformers import CONFIG_MAPPING

        fields = {**SIZES, "num_hidden_layers": layers, **OWN.get(self.model_type, {})}
        said = {
            name: value * layers if isinstance(value, list) else value
            for name, value in fields.items()
            if value is not ...
        }
        config = CONFIG_MAPPING[self.model_type](**said)
        pair = next(pair for pair in PAIRS if pair.dense.model_type == self.model_type)
        config.architectures, config.dtype = [pair.dense.model_class], "bfloat16"
        written: dict[str, Any] = json.loads(config.to_json_string())
        return written

    def _tensors(self, config: dict[str, Any]) -> list[models.Entry]:
        pair, target = fitting(config)
        matched = Match(pair, pair.dense.as_read(config), target, sizes_of(pair, target))
        entries = [
            (name, "BF16", shape)
            for part, shape, name in matched.tensors()
            if part != "head" or not target["tie_word_embeddings"]
        ]
        return sorted(entries, key=lambda entry: _layer(entry[0]))

    def _nbytes(self, config: dict[str, Any]) -> int:
        return sum(tensor_bytes(dtype, shape) for _, dtype, shape in self._tensors(config))


def _layer(name: str) -> int:
    found = re.search(r"layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def figure(pair: Pair, plan: dict[str, Any], ours: Sequence[Usage], cp: Sequence[Usage]) -> Figure:
    """Return what was measured of a pair: the ratio within each run of both, its median, and the largest memory."""
    ratios = [one.seconds / other.seconds for one, other in zip(ours, cp, strict=True)]
    ratio, peak = median(ratios), max(usage.peak_bytes for usage in ours)
    computed = plan["computed_bytes"] / plan["disk_bytes"]
    copied = computed < COPIED
    size = f"{plan['disk_bytes'] / 1e9:.2f} GB, {computed:.1%} computed"
    return Figure(
        f"{pair.dense.model_type} to {pair.target.model_type}: {size}",
        f"{ratio:.2f} ({listed(sorted(ratios), 2)}) of {median_wall(cp):.1f} s; {megabytes(peak)}",
        f"{f'{MOST_RATIO}; ' if copied else ''}under {MOST_BYTES / 1e6:.0f} MB",
        peak < MOST_BYTES and (not copied or ratio <= MOST_RATIO),
    )


def measure(dense: Path, pair: Pair, pairs: int) -> Figure:
    """Convert as often as `cp` copies what came of it."""
    out, reference = dense.with_name("moe"), dense.with_name("reference")
    options = ["--experts", str(EXPERTS), "--target", pair.target.model_type]
    convert, cp = [UPCYCLE, "convert", str(dense), str(out), *options], ["cp", "-r", str(reference), str(out)]

    def prepare() -> None:
        remove(out)
        read_through(dense)
        read_through(reference)

    plan = json.loads(run([UPCYCLE, "plan", str(dense), *options, "--json"]).output)
    run(convert)
    out.rename(reference)
    try:
        ours, theirs = alternate(convert, cp, pairs, prepare)
    finally:
        remove(out)
        remove(reference)
    return figure(pair, plan, ours, theirs)


def figures(work: Path, pairs: int, only: Iterable[str]) -> list[Figure]:
    """Measure the pairs of each dense model, or of those in `only`; one model is on the disk at a time."""
    found = []
    for model_type in dict.fromkeys(pair.dense.model_type for pair in PAIRS):
        if only and model_type not in only:
            continue
        dense = work / model_type
        shutil.rmtree(dense, ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.families", "--write", model_type, "--dir", str(dense)]
        subprocess.run(command, check=True)
        for pair in PAIRS:
            if pair.dense.model_type == model_type and "full" in pair.forms:
                found.append(measure(dense, pair, pairs))
                print(f"{found[-1].what:<60} {found[-1].value} {found[-1].verdict}", flush=True)
        shutil.rmtree(dense)
    return found


def main() -> None:
    """Measure and print; write the results unless only some models were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("build/bench/families"), help="where to work")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--only", nargs="+", default=[], metavar="DENSE", help="measure some models, write no results")
    parser.add_argument("--write", metavar="DENSE", help="write this model into DIR, measure nothing")
    chosen = parser.parse_args()
    if chosen.write:
        models.write_random(chosen.dir, Dense(chosen.write))
        return
    chosen.dir.mkdir(parents=True, exist_ok=True)
    section = Section(
        "Every family, against cp",
        ABOUT.format(experts=EXPERTS, pairs=chosen.pairs),
        [f"upcycle convert dense moe --experts {EXPERTS} --target TARGET; sync", "cp -r reference moe; sync"],
        [],
    )
    section.figures.extend(figures(chosen.dir, chosen.pairs, chosen.only))
    section.finish()
    if not chosen.only:
        update(RESULTS, [section])


if __name__ == "__main__":
    main()
