"""A script that knows transformers alone: loads pairs of checkpoints by their defaults and compares their logits.

    python -P compare_plainly.py REQUEST.json ANSWER.json

The request lists `{"name": ..., "dense": DIR, "moe": DIR, "dtype": ...}`; the answer says of each name what its mixture
has for keys that find no place, its class, and how far its logits are from the dense model's.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

TOKENS, SMALLEST_VOCABULARY = 40, 96  # longer than windows, and than the length after which longrope changes factors


def load(directory: str, dtype: str) -> tuple[Any, dict[str, list[str]]]:
    """Return a model as any user has it, and which of its keys are missing, left over or of other shapes."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype=dtype)
    return model.eval(), {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}


@torch.no_grad()
def compare(dense: str, moe: str, dtype: str) -> dict[str, Any]:
    """Return what is told of one pair: the relative error is of the largest logit."""
    (theirs, _), (ours, wrong) = load(dense, dtype), load(moe, dtype)
    ids_BT = torch.randint(0, SMALLEST_VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(5))
    theirs_BTV, ours_BTV = theirs(ids_BT).logits.float(), ours(ids_BT).logits.float()
    return {
        "class": type(ours).__name__, "wrong": wrong, "largest": float(theirs_BTV.abs().max()),
        "relative": float((ours_BTV - theirs_BTV).abs().max() / theirs_BTV.abs().max()),
    }  # fmt: skip


def main(request: Path, answer: Path) -> None:
    """Answer a request."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    told = {
        row["name"]: compare(row["dense"], row["moe"], row["dtype"])
        for row in json.loads(request.read_text(encoding="utf-8"))
    }
    imported = sorted({name.partition(".")[0] for name in sys.modules} & {"upcycle", "peft", "tests"})
    answer.write_text(json.dumps({"told": told, "imported": imported}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
