"""Published configs, made small, with random weights of the stock class: what `plan` makes of each of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.families.published import NO_ROW, PUBLISHED, Published
from upcycle.build.conversion import conversion_warnings, plan_conversion
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import UnsupportedError
from upcycle.families.pairs import DENSE
from upcycle.requests import Conversion

VOCABULARY = 96
LAYERS = 4  # so that a pattern of layers is still one


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with small sizes: queries for each key head, tied or not, odd head sizes are as they were."""
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    kept = min(key_heads, 2)
    small_heads = heads // key_heads * kept
    hidden = 8 * small_heads
    odd = "head_dim" in config and config["head_dim"] * heads != config["hidden_size"]
    head_dim = {"head_dim": 12 if odd else 8} if "head_dim" in config else {}
    rotated = int(head_dim.get("head_dim", 8) * config.get("partial_rotary_factor", 1.0)) // 2
    small = {
        "hidden_size": hidden, "num_attention_heads": small_heads, "num_key_value_heads": kept, **head_dim,
        "intermediate_size": 8 * round(hidden * config["intermediate_size"] / config["hidden_size"] / 8),
        "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY,
    }  # fmt: skip
    for name, value in config.items():
        if isinstance(value, list) and len(value) == config["num_hidden_layers"]:
            small[name] = value[:LAYERS]
        if name == "rope_scaling" and value and "long_factor" in value:
            small[name] = {**value, "short_factor": [1.0] * rotated, "long_factor": [1.5] * rotated}
    return {**config, **small}


def save(config: dict[str, Any], directory: Path) -> Path:
    """Save a model with this config.json, word for word, and random weights of the stock class."""
    stock = CONFIG_MAPPING[config["model_type"]].from_dict({**config, "pad_token_id": None})
    stock.pad_token_id = None  # as published it may lie beyond the small vocabulary
    model = AutoModelForCausalLM.from_config(stock, dtype=torch.bfloat16)
    tied = ("lm_head.weight",) if config["tie_word_embeddings"] else ()
    directory.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def noted(published: Published) -> list[str]:
    """What the note about fields that are not read says, in pieces."""
    parts = [(published.kept, "kept"), (published.left_out, "left out")]
    return [f"{', '.join(names)} {word}" for names, word in parts if names]


def test_there_are_thirty_and_more_of_them() -> None:
    assert len(PUBLISHED) >= 30
    assert all(one.target or one.refusal for one in PUBLISHED.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_planned_or_refused_as_expected(name: str, tmp_path: Path) -> None:
    published = PUBLISHED[name]
    checkpoint = open_checkpoint(save(shrunk(published.config), tmp_path / "dense"))
    request = Conversion(model=str(tmp_path / "dense"), experts=4, top_k=2)
    if published.target is None:
        assert (published.refusal == NO_ROW) == (published.config["model_type"] not in DENSE)
        with pytest.raises(UnsupportedError) as caught:
            plan_conversion(checkpoint, request)
        assert published.refusal in str(caught.value)
        return
    plan = plan_conversion(checkpoint, request)
    assert plan.config["model_type"] == published.target
    getattr(transformers, plan.config["architectures"][0]).config_class.from_dict(plan.config)
    told = " ".join(conversion_warnings(checkpoint, plan, request))
    assert all(piece in told for piece in noted(published))
    assert ("does not read" in told) == bool(noted(published))
    assert {field: plan.config[field] for field in published.kept} == {
        field: published.config[field] for field in published.kept
    }
    assert not set(published.left_out) & set(plan.config)
