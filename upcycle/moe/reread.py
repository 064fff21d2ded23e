"""Loads a checkpoint with plain transformers and runs it: a script that `clean_run` starts and that imports no upcycle.

    python -P reread.py DIRECTORY

reads `request.json` in that directory, writes `answer.json` and the logits as `logits.npy`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging


@torch.no_grad()
def logits(model: Any, ids_T: Tensor) -> Tensor:
    """Return the logits `(T, V)` of a model in eval mode."""
    found: Tensor = model(input_ids=ids_T[None], use_cache=False).logits[0]
    return found.float()


def greedy(model: Any, ids_T: Tensor, count: int) -> tuple[list[int], list[float]]:
    """Return `count` tokens, each the likeliest after those before it, and how far its logit is above the second."""
    tokens, margins = [], []
    for _ in range(count):
        last_V = logits(model, ids_T)[-1]
        best = last_V.topk(2)
        tokens.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        ids_T = torch.cat([ids_T, best.indices[:1]])
    return tokens, margins


def cut(model: Path, layers: int) -> dict[str, Any]:
    """Return the fields of the config with which the checkpoint in `model` loads as its first layers; none for all."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if layers == config.get("text_config", config)["num_hidden_layers"]:
        return {}
    lists = {name: value[:layers] for name, value in config.items() if name.endswith("layer_types") and value}
    return {"num_hidden_layers": layers, **lists}


def main(directory: Path) -> None:
    """Answer the request in `directory`; what it asks for as null is left to transformers' defaults."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    asked = json.loads((directory / "request.json").read_text())
    options = {"dtype": asked["dtype"], "experts_implementation": asked["experts"]}
    options = {name: value for name, value in options.items() if value is not None}
    options |= cut(Path(asked["model"]), asked["layers"])
    kind = type(AutoConfig.from_pretrained(asked["model"]))
    whole = kind in AutoModelForImageTextToText._model_mapping  # as `moe.auto` has it
    loader: Any = AutoModelForImageTextToText if whole else AutoModelForCausalLM
    model, info = loader.from_pretrained(asked["model"], output_loading_info=True, **options)
    model.eval()
    ids_T = torch.tensor(asked["ids"])
    np.save(directory / "logits.npy", logits(model, ids_T).numpy())
    tokens, _ = greedy(model, ids_T[: asked["prompt"]], asked["count"])
    answer: dict[str, Any] = {
        "class": type(model).__name__,
        "version": transformers.__version__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "experts": getattr(model.config.get_text_config(decoder=True), "_experts_implementation", None),
        "loading": {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys},
        "tokens": tokens,
        "read": None,
    }
    if asked["text"] is not None:
        tokenizer = AutoTokenizer.from_pretrained(asked["model"])
        answer["read"] = tokenizer(asked["text"], truncation=True, max_length=len(ids_T))["input_ids"]
    answer["upcycle"] = "upcycle" in sys.modules
    (directory / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
