"""Cards of mixtures that are more than experts in every layer: what they say of layers, shared experts, wrappers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.any_dense import attach
from tests.any_dense import save_model as save_dense
from tests.cards import data_of, told
from tests.conftest import edit_json, run_convert
from tests.families.models import MODELS, save_model
from tests.families.test_wrappers import WHOLES, save_whole
from upcycle.card import facts_of

Card = Callable[..., str]


@pytest.fixture
def card(tmp_path: Path) -> Card:
    """Return a function: a model of `MODELS` -> the card of its conversion."""

    def get(name: str, **options: Any) -> str:
        model = MODELS[name]
        dense = save_model(name, model, tmp_path / "dense")
        return told(facts_of(run_convert(dense, tmp_path / "moe", **{**model.options, **options})))

    return get


SENTENCES: dict[str, tuple[str, ...]] = {
    "qwen2_some_layers": (
        "A Qwen2-MoE of 4 experts in 2 of 3 layers, 2 for each token, made from",
        "| experts | 4 in 2 of 3 layers, 2 for each token |",
    ),
    "shared_zero": (
        "every expert is a copy of the dense feed-forward network, and so is a shared expert, which every token uses, "
        "but for its output, which is zero, routers are drawn",
    ),
    "shared_half": ("and so is a shared expert, which every token uses, all at half their output, routers are drawn",),
    "shared_dense": (
        "the dense feed-forward network is the shared expert, which every token uses, and the others beside it, 20 "
        "neurons wide, begin with some of its rows and an output of zero, routers are drawn",
        "Yes, by construction: the shared expert is the dense feed-forward network, and the others add nothing.",
        "Its routed experts add nothing until training moves them",
    ),
    "gemma4_large": (
        "A Gemma 4 of 3 experts in each layer, 3 for each token",
        "every expert is a copy of the dense feed-forward network, which stays beside them, routers",
        "the experts are identical. Gemma 4 normalises what its FFN and its experts give once more",
    ),
    "gemma_bf16": ("No: rounding of weights that take another form in a mixture changes the function on purpose.",),
    "granite4": ("A Granite 4 MoE of 3 experts in each layer",),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_what_a_conversion_says(card: Card, name: str) -> None:
    text = " ".join(card(name).split())
    for sentence in SENTENCES[name]:
        assert sentence in text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"noise": 0.1}, "noise on the experts changes"),
        ({"dtype": "bf16"}, "rounding to another data type changes"),
        ({"noise": 0.1, "dtype": "bf16"}, "noise on the experts and rounding to another data type change"),
    ],
)
def test_why_a_conversion_is_not_exact(card: Card, options: dict[str, Any], why: str) -> None:
    assert f"No: {why} the function on purpose." in card("llama", **options)


def test_a_hostile_choice_of_layers(card: Card, tmp_path: Path) -> None:
    card("llama")
    for asked in ("0-999999," * 9 + "1", "every:0", "9", "first:x", ["0"], "0-999999,0", "every:999999"):
        lineage = facts_of(tmp_path / "moe").lineage
        edit_json(tmp_path / "moe/upcycle.json", recipe={**lineage[-1]["recipe"], "layers": asked})
        assert "| experts | 4 in each layer" in told(facts_of(tmp_path / "moe"))


def test_a_dense_model_has_the_title_of_a_dense_model(tmp_path: Path) -> None:
    """Its class is that of the mixtures, too."""
    text = told(facts_of(save_model("granite4", MODELS["granite4"], tmp_path / "dense")))
    assert "A Granite 4; how it was made" in text
    assert "MoE" not in text


@pytest.mark.parametrize(("name", "title"), [("llava", "LLaVA"), ("qwen3_5", "Qwen3.5-MoE")])
def test_a_multimodal_model(tmp_path: Path, name: str, title: str) -> None:
    whole = WHOLES[name]
    text = told(facts_of(run_convert(save_whole(name, whole, tmp_path / "dense"), tmp_path / "moe")))
    assert f"A {title} whose language model is a " in text
    assert "| experts | 4 in each layer, 2 for each token |" in text
    assert "AutoModelForImageTextToText.from_pretrained" in text
    assert "AutoModelForCausalLM" not in text
    assert not {"vllm serve", "llama-cli"} & set(text.splitlines())
    data = data_of(text)
    assert data["pipeline_tag"] == "image-text-to-text"
    assert {whole.moved or whole.model_type, whole.becomes} <= set(data["tags"])


def test_an_adapter_with_an_update_of_the_attention(tmp_path: Path) -> None:
    base = save_dense("helium", tmp_path / "base")
    text = told(facts_of(attach(base, tmp_path / "adapter", "lora", attention_rank=2)))
    assert "and an update of the attention of rank 2." in text
