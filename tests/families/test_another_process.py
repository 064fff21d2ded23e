"""Every pair in a process that has only transformers: loaded by its defaults, it computes what the dense one does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.conftest import run_convert
from tests.families import compare_plainly
from tests.families.models import MODELS, save_model

BF16_TOLERANCE = 3e-2
"""Both models in bfloat16: each rounds every sum to 8 bits, in an order of its own, and a router to other weights."""


@pytest.mark.slow  # a minute
def test_plain_transformers_computes_the_same_of_every_pair(tmp_path: Path) -> None:
    rows = []
    for name, model in MODELS.items():
        dense = save_model(name, model, tmp_path / name / "dense")
        moe = run_convert(dense, tmp_path / name / "moe", **model.options)
        row = {"dense": str(dense), "moe": str(moe)}
        rows.append({"name": name, **row, "dtype": "float32"})
        if name.endswith(("_bf16", "_tied")):
            rows.append({"name": f"{name} in bfloat16", **row, "dtype": "bfloat16"})
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    request.write_text(json.dumps(rows))
    script = Path(compare_plainly.__file__).resolve()
    # -P: what lies beside the script is not found by its name
    command = [sys.executable, "-P", "-W", "ignore", str(script), str(request), str(answer)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(answer.read_text())
    assert found["imported"] == []
    assert len(found["told"]) == len(rows)
    classes = {kind.model_type: named for kind, named in AutoModelForCausalLM._model_mapping.items()}
    for row in rows:
        model, told = MODELS[row["name"].partition(" ")[0]], found["told"][row["name"]]
        tolerance = model.tolerance if row["dtype"] == "float32" else BF16_TOLERANCE
        assert told["wrong"] == {}, row["name"]
        assert told["class"] == classes[model.becomes].__name__, row["name"]
        assert told["largest"] > 1, row["name"]
        assert told["relative"] <= tolerance, (row["name"], told)
