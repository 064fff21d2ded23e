"""Training and trying multimodal models: the language model moves, what is around it stays, and all is saved."""

from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.conftest import run_convert
from tests.families.test_wrappers import WHOLES, save_whole
from tests.training import run_train
from upcycle.checkpoint.reader import TOKENIZER_FILES, present_files
from upcycle.hub.contents import read_contents
from upcycle.moe.fit import check_fit
from upcycle.pipeline.locate import BUILT_IN
from upcycle.pipeline.stages import generate
from upcycle.requests import Generate

VOCABULARY = 2064  # of the built-in tokenizer, and what a Qwen's adds


def save_moe(name: str, place: Path) -> Path:
    """Save a mixture made of a random multimodal model, with a tokenizer."""
    whole = WHOLES[name]
    sizes = {"vocab_size": VOCABULARY}
    sizes |= {"vocab_size_per_layer_input": VOCABULARY} if whole.model_type == "gemma4" else {}
    dense = save_whole(name, replace(whole, text_fields={**whole.text_fields, **sizes}), place / "dense")
    for path in present_files(BUILT_IN["demo:tiny"], TOKENIZER_FILES):
        copyfile(path, dense / path.name)
    return run_convert(dense, place / "moe")


@pytest.mark.parametrize(
    ("name", "train"),
    [("llava", "all"), ("llava", "lora"), ("mistral3_tied", "lora"), ("qwen3_5", "all"), ("gemma4_large", "experts")],
)
def test_text_moves_the_language_model_alone(name: str, train: str, text: Path, tmp_path: Path) -> None:
    moe = save_moe(name, tmp_path)
    fields: dict[str, Any] = {"lora_rank": 2} if train == "lora" else {}
    out = run_train(moe, tmp_path / "out", text, seq_len=16, batch_size=2, max_steps=2, train=train, **fields)
    before, after = (load_file(place / "model.safetensors") for place in (moe, out))
    assert before.keys() == after.keys()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert any("experts" in key for key in moved)
    assert all("language_model." in key or key.startswith("lm_head.") for key in moved)
    _, told = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert {kind: keys for kind, keys in told.items() if keys} == {}
    contents = read_contents(out, ())
    check_fit(contents.directory, contents.shapes)  # as `push` does
    assert generate(Generate(model=str(out), prompt="Thus saith", max_new_tokens=2)).startswith("Thus saith")
