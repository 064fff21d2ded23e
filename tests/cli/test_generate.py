"""`upcycle generate`: the same text as plain transformers, for dense models and for what convert writes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import run_convert
from upcycle.errors import InputError
from upcycle.pipeline.locate import BUILT_IN
from upcycle.pipeline.stages import generate
from upcycle.requests import Generate

PROMPT = "Thus saith the LORD"


def test_dense_and_moe_write_what_transformers_writes(tmp_path: Path) -> None:
    tiny = BUILT_IN["demo:tiny"]
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = tokenizer.decode(model.generate(ids, max_new_tokens=20, do_sample=False)[0])
    pieces: list[str] = []
    written = generate(Generate(model="demo:tiny", prompt=PROMPT, max_new_tokens=20), pieces.append)
    assert written == expected == "".join(pieces)
    moe = run_convert(tiny, tmp_path / "moe")
    assert generate(Generate(model=str(moe), prompt=PROMPT, max_new_tokens=20)) == expected


def test_sampling_is_repeatable_by_seed() -> None:
    one, same, other = (
        generate(Generate(model="demo:tiny", prompt=PROMPT, max_new_tokens=20, temperature=1.0, seed=seed))
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_a_chat_model_is_asked_through_its_template(smollm2: Path) -> None:
    asked = Generate(model=str(smollm2), prompt="What is the capital of France?", max_new_tokens=10)
    assert generate(asked) == "The capital of France is Paris."


def test_what_cannot_be_done_is_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match=r"no such device; found warp, expected auto, cpu"):
        generate(Generate(model="demo:tiny", prompt=PROMPT, device="warp"))
    with pytest.raises(InputError, match=r"the tokenizer has no chat template; --no-chat continues the prompt"):
        generate(Generate(model="demo:tiny", prompt=PROMPT, chat=True))
    with pytest.raises(InputError, match="holds no tokenizer; `upcycle convert --tokenizer DIR` takes one"):
        generate(Generate(model=str(tiny), prompt=PROMPT))
    with pytest.raises(InputError, match="the prompt is empty"):
        generate(Generate(model="demo:tiny", prompt=""))
    with pytest.raises(InputError, match="no such device; found meta"):
        generate(Generate(model="demo:tiny", prompt=PROMPT, device="meta"))
