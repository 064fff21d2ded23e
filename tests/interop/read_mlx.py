"""Run in the environment of mlx-lm: load the models that are asked for, in float32, and write their logits.

Reads `request.json` of the directory it is given, writes `answer.json` and an array of logits per model there.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx  # type: ignore[import-not-found]
import numpy as np
from mlx_lm.utils import load_model  # type: ignore[import-not-found]


def logits(directory: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Write the logits of `NAME.ids.npy`; return what went wrong, if the model cannot even be loaded or run."""
    try:
        model, _ = load_model(Path(job["model"]))
        model.set_dtype(mx.float32)
        ids = mx.array(np.load(directory / f"{job['name']}.ids.npy"))
        np.save(directory / f"{job['name']}.logits.npy", np.array(model(ids[None])[0]))
    except Exception as error:  # fields, experts or shapes that it does not expect, each in its own way
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return {}


def main(directory: Path) -> None:
    """Answer the request."""
    mx.set_default_device(mx.cpu)
    request = json.loads((directory / "request.json").read_text())
    models = {job["name"]: logits(directory, job) for job in request["jobs"]}
    (directory / "answer.json").write_text(json.dumps({"version": version("mlx-lm"), "models": models}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
