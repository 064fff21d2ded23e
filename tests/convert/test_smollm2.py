"""The real SmolLM2-135M-Instruct as 8 experts, 2 of them for each token: the same function to the last digit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import run_convert

# Of the Gettysburg Address (1863).
TEXT = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived "
    "in Liberty, and dedicated to the proposition that all men are created equal. Now we are engaged in a "
    "great civil war, testing whether that nation, or any nation so conceived and so dedicated, can long "
    "endure. We are met on a great battle-field of that war. We have come to dedicate a portion of that "
    "field, as a final resting place for those who here gave their lives that that nation might live. It "
    "is altogether fitting and proper that we should do this."
)

QUESTION = [{"role": "user", "content": "Name three colours of the rainbow."}]


@pytest.fixture(scope="module")
def moe(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import shutil

    out = run_convert(smollm2, tmp_path_factory.mktemp("smollm2") / "moe", experts=8, top_k=2)
    yield out
    shutil.rmtree(out)  # 1.4 GB


@pytest.fixture(scope="module")
def models(smollm2: Path, moe: Path) -> tuple[Any, Any]:
    """Both models in float32: 0.5 and 2.8 GB. Nothing may be missing, left over or newly made."""
    loaded = []
    for directory in (smollm2, moe):
        model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype=torch.float32)
        assert {name: keys for name, keys in info.items() if keys} == {}
        loaded.append(model.eval())
    dense, sparse = loaded
    return dense, sparse


@pytest.fixture(scope="module")
def logits(smollm2: Path, models: tuple[Any, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (T,) and both models' logits (T, V) on the text."""
    tokens_BT = AutoTokenizer.from_pretrained(smollm2)(TEXT, return_tensors="pt").input_ids
    assert tokens_BT.shape[1] > 100
    with torch.no_grad():
        dense_TV, moe_TV = (model(tokens_BT).logits[0] for model in models)
    return tokens_BT[0], dense_TV, moe_TV


def test_logits_are_the_same(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    _, dense_TV, moe_TV = logits
    assert (moe_TV - dense_TV).abs().max() <= 1e-5 * dense_TV.abs().max()
    assert torch.equal(moe_TV.argmax(-1), dense_TV.argmax(-1))


def test_perplexity_is_the_same_to_five_digits(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    tokens_T, dense_TV, moe_TV = logits
    dense, moe = (float(cross_entropy(each[:-1], tokens_T[1:]).exp()) for each in (dense_TV, moe_TV))
    assert f"{moe:.5g}" == f"{dense:.5g}"
    assert 1 < dense < 20, "a model that can read has seen this text"


def test_the_answer_is_the_same(smollm2: Path, models: tuple[Any, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    dense, moe = (
        model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        for model in models
    )
    assert torch.equal(moe, dense)
    assert len(dense) == 16
    assert tokenizer.decode(dense, skip_special_tokens=True).isascii()


def test_the_tokenizer_of_the_output_answers_alike(smollm2: Path, moe: Path) -> None:
    theirs, ours = (AutoTokenizer.from_pretrained(directory) for directory in (smollm2, moe))
    assert ours(TEXT).input_ids == theirs(TEXT).input_ids
    assert ours.apply_chat_template(QUESTION, tokenize=False) == theirs.apply_chat_template(QUESTION, tokenize=False)


def test_experts_are_byte_for_byte_the_dense_model(smollm2: Path, moe: Path) -> None:
    (weights,) = moe.glob("*.safetensors")
    with safe_open(smollm2 / "model.safetensors", "pt") as dense, safe_open(weights, "pt") as sparse:
        names = set(sparse.keys())
        for layer in range(30):
            for target, source in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
                original = dense.get_tensor(f"model.layers.{layer}.mlp.{source}.weight").view(torch.int16)
                for expert in range(8):
                    name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{target}.weight"
                    assert torch.equal(sparse.get_tensor(name).view(torch.int16), original), name
                    names.remove(name)
            names.remove(f"model.layers.{layer}.block_sparse_moe.gate.weight")
        assert names == {name for name in dense.keys() if ".mlp." not in name}  # noqa: SIM118 - not a dict
        for name in names:
            assert torch.equal(sparse.get_tensor(name).view(torch.int16), dense.get_tensor(name).view(torch.int16))


def test_figures(moe: Path) -> None:
    receipt = json.loads((moe / "upcycle.json").read_bytes())
    # 49152 * 576 embeddings (tied), 30 * (2 * 576 * 576 + 2 * 192 * 576) attention, 61 * 576 norms and
    # 30 * 8 * 576 routers are 55,027,008; an expert is 30 * 3 * 576 * 1536 = 79,626,240.
    assert receipt["parameters"] == {"total": 55_027_008 + 8 * 79_626_240, "active": 55_027_008 + 2 * 79_626_240}
    assert receipt["exact"] is True
