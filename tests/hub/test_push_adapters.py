"""Adapters, merged models and trained models on the Hub: what they name, and that others can load them."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import contents, edit_json, run_convert
from tests.drawn_adapters import draw_adapter
from tests.hub.server import Hub
from tests.loras import save_lora
from tests.merging import run_merge
from tests.pushing import Author, content, held
from tests.training import run_train
from upcycle.pipeline.stages import attach
from upcycle.requests import Attach

NAME, BASE = "someone/adapter", "org/dense"


@pytest.fixture
def author(hub: Hub, tmp_path: Path) -> Author:
    """Who may write, by chunks."""
    return Author(hub, tmp_path / "home")


@pytest.fixture
def base(hub: Hub, tiny: Path) -> Path:
    """A dense model, which is also on the Hub."""
    hub.repo(BASE, {path.name: path for path in tiny.iterdir()})
    return tiny


@pytest.fixture
def experts(tiny: Path, tmp_path: Path) -> Path:
    """An adapter of upcycle's own, for a directory of this machine."""
    attach(Attach(model=str(tiny), out=str(tmp_path / "experts"), experts=(4,), top_k=2))
    return tmp_path / "experts"


@pytest.fixture
def lora(tiny: Path, tmp_path: Path) -> Path:
    """A plain LoRA, saved by peft."""
    made = save_lora(tiny, tmp_path / "lora")
    (made / "README.md").unlink(missing_ok=True)
    return made


READ = """
import json, torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM
import warnings; warnings.simplefilter("ignore")
import peft
ids = torch.arange(3, 67).view(1, 64)
def logits(adapter, base):
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)(ids).logits
config = peft.PeftConfig.from_pretrained({0!r})
there = logits({0!r}, config.base_model_name_or_path)
print(json.dumps([config.base_model_name_or_path, torch.equal(there, logits({1!r}, {2!r})),
                  torch.equal(there, AutoModelForCausalLM.from_pretrained({2!r})(ids).logits),
                  ModelCard.load({0!r}).data.to_dict()]))
"""


def test_a_lora(hub: Hub, author: Author, base: Path, lora: Path, tmp_path: Path) -> None:
    before = contents(lora)
    told = author.push(lora, NAME, "--base", BASE)
    assert told["kind"] == "adapter"
    assert told["uploaded"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    reader = Author(hub, tmp_path / "reader", {})
    named, equal, nothing, data = json.loads(reader.python(READ.format(NAME, str(lora), str(base))).splitlines()[-1])
    assert (named, equal, nothing) == (BASE, True, False)
    assert (data["library_name"], data["base_model"], data["base_model_relation"]) == ("peft", BASE, "adapter")
    assert contents(lora) == before
    assert author.push(lora, NAME, "--base", BASE)["uploaded"] == []


def test_experts(hub: Hub, author: Author, base: Path, experts: Path) -> None:
    author.push(experts, NAME, "--base", BASE)
    repo = hub.repos[NAME]
    config = json.loads(content(repo, "adapter_config.json"))
    receipt = json.loads(content(repo, "upcycle.json"))
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("UPCYCLE", BASE)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert receipt["files"][name] == hashlib.sha256(content(repo, name)).hexdigest()
    assert content(repo, "adapter_model.safetensors") == (experts / "adapter_model.safetensors").read_bytes()
    everything = b"".join(blob.read(0, blob.size) for blob in held(repo).values())
    assert str(base).encode() not in everything
    assert str(experts.parent).encode() not in everything
    assert author.push(experts, NAME, "--base", BASE)["uploaded"] == []


def test_a_base_that_nobody_else_has(hub: Hub, author: Author, experts: Path, lora: Path) -> None:
    for adapter in (experts, lora):
        line = author.refused(adapter, NAME)
        assert "belongs to a model that others cannot find by its name" in line
        assert line.endswith("--base gives its Hub id, such as org/name")
        assert "belongs to a model" in author.refused(adapter, NAME, "--base", "./dense")
    assert not hub.repos


def test_an_adapter_that_is_not_of_its_base(author: Author, base: Path, experts: Path, tmp_path: Path) -> None:
    config = json.loads((experts / "adapter_config.json").read_bytes())
    other = tmp_path / "other"
    shutil.copytree(base, other)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    (experts / "upcycle.json").unlink()
    edit_json(experts / "adapter_config.json", **{**config, "base_model_name_or_path": str(other)})
    assert "is not the model that the adapter was made for" in author.refused(experts, NAME, "--base", BASE)


def test_an_adapter_in_the_place_of_a_model(hub: Hub, author: Author, base: Path, lora: Path) -> None:
    repo = hub.repo(NAME, {".gitattributes": b"", **{path.name: path for path in base.iterdir()}})
    told = author.push(lora, NAME, "--base", BASE)
    assert {"config.json", "model.safetensors"} <= set(told["removed"])
    assert held(repo).keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    model = run_convert(base, lora.with_name("moe"))
    assert "has metadata of another model, from an earlier push" in author.refused(model, NAME)
    repo.commit({"README.md": None})
    back = author.push(model, NAME)
    assert back["removed"] == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_merged_model(hub: Hub, author: Author, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    run_merge(draw_adapter(base, tmp_path / "drawn", "lora"), base, out)
    told = author.push(out, "someone/merged")
    assert told["kind"] == "model"
    everything = b"".join(blob.read(0, blob.size) for blob in held(hub.repos["someone/merged"]).values())
    assert str(tmp_path).encode() not in everything
    code = """
from transformers import AutoModelForCausalLM
_, told = AutoModelForCausalLM.from_pretrained("someone/merged", output_loading_info=True)
print(told["missing_keys"], told["unexpected_keys"])
"""
    keys = Author(hub, tmp_path / "reader", {}).python(code).splitlines()[-1]
    assert keys in ("[] []", "set() set()")


@pytest.mark.slow  # it trains
def test_a_trained_model(hub: Hub, author: Author, moe: Path, text: Path, tmp_path: Path) -> None:
    """Its curves are drawn for the card, and always the same."""
    out = run_train(moe, tmp_path / "trained", text)
    told: dict[str, Any] = author.push(out, "someone/trained")
    assert {"metrics.jsonl", "plots/losses.png", "plots/load-over-steps.png"} <= set(told["uploaded"])
    assert "plots/losses.png" in content(hub.repos["someone/trained"], "README.md").decode()
    assert not (out / "plots").exists()
    everything = b"".join(blob.read(0, blob.size) for blob in held(hub.repos["someone/trained"]).values())
    assert str(tmp_path).encode() not in everything
    again = author.push(out, "someone/trained")
    assert again["uploaded"] == []
