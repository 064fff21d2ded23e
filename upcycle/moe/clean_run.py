"""Runs a checkpoint by plain transformers in a process of its own, which never imports upcycle."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upcycle.message import listed
from upcycle.moe import reread
from upcycle.moe.memory import layer_of

NAMED = 3
"""Tensors of a kind that a message names."""

FRUGAL = {"HF_DEACTIVATE_ASYNC_LOAD": "1", "MALLOC_MMAP_THRESHOLD_": str(10**6)}
"""Environment in which loading takes little more than the weights: transformers reads all experts before it stacks the
first, and glibc keeps what their parts leave behind (1.7 and 1.4 times as much, measured)."""


@dataclass(frozen=True)
class CleanRun:
    """What plain transformers made of a checkpoint. Shapes: T tokens, V vocabulary."""

    logits_TV: Tensor  # float32, empty where it could not be run
    told: Mapping[str, Any]  # answer.json of `reread`
    failure: str | None = None  # the last line of the error that ended the process

    def loading_problem(self, layers: int) -> str | None:
        """Return which tensors found no place, but for those of layers after the first `layers`, which did not run."""
        found: dict[str, list[str]] = dict(self.told["loading"])
        unexpected = found.pop("unexpected_keys", [])
        if strange := [name for name in unexpected if (layer_of(name) or 0) < layers]:
            found["unexpected_keys"] = strange
        return "; ".join(f"{kind}: {listed(keys, NAMED)}" for kind, keys in found.items()) or None


def run_clean(
    model: Path,
    ids_T: Tensor,
    layers: int,
    *,
    dtype: str | None = None,
    experts: str | None = None,
    prompt: int = 0,
    new_tokens: int = 0,
    text: str | None = None,
) -> CleanRun:
    """Run the first `layers` layers of the checkpoint in `model` on token ids `(T,)`.

    `dtype` and `experts` (transformers' experts_implementation) are transformers' defaults where they are None. It also
    writes `new_tokens` tokens after the first `prompt`, and reads `text` with the checkpoint's tokenizer.
    """
    asked = {
        "model": str(model.resolve()), "layers": layers, "ids": ids_T.tolist(), "dtype": dtype, "experts": experts,
        "prompt": prompt, "count": new_tokens, "text": text,
    }  # fmt: skip
    with TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "request.json").write_text(json.dumps(asked))
        # -P: the modules beside the script must not be found under the names of installed ones
        argv = [sys.executable, "-P", str(Path(reread.__file__).resolve()), name]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **FRUGAL}
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", cwd=name, env=environment)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            return CleanRun(torch.empty(0, 0), {}, (said or [f"exit {done.returncode}"])[-1][:300])
        told = json.loads((directory / "answer.json").read_text())
        return CleanRun(torch.from_numpy(np.load(directory / "logits.npy")), told)
