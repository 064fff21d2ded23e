"""Adapter experts on dense models without a mixture of experts: each architecture, from `attach` to peft's loader."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.any_dense import CASES, attach, load, logits, save_model, trained_on, wrap
from tests.conftest import edit_json
from upcycle.adapters import ExpertsConfig
from upcycle.adapters.load import attached
from upcycle.errors import CheckpointError, InputError, UnsupportedError
from upcycle.families.base import known_types
from upcycle.families.dense.attachable import ATTACHABLE
from upcycle.families.dense.dense import Modules
from upcycle.families.pairs import DENSE
from upcycle.pipeline import stages
from upcycle.requests import Attach, Generate, Merge


def test_every_row_is_tried() -> None:
    assert set(ATTACHABLE) <= set(CASES) <= set(known_types())
    assert not set(ATTACHABLE) & set(DENSE)


@pytest.mark.parametrize("model_type", CASES)
def test_from_attach_to_peft(model_type: str, text: Path, tmp_path: Path) -> None:
    """It starts as the dense model bit for bit, trains, comes back from disk, and without a target is not merged."""
    case, base = CASES[model_type], save_model(model_type, tmp_path / "base")
    adapter = attach(base, tmp_path / "adapter", case.kind, **case.asked)
    dense = logits(load(base))
    assert dense.std() > 0.05
    assert torch.equal(logits(attached(load(base), adapter).eval()), dense)

    trained = trained_on(text, adapter, tmp_path / "trained")
    before, after = (load_file(place / "adapter_model.safetensors") for place in (adapter, trained))
    assert not [name for name, value in before.items() if torch.equal(after[name], value)]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    layers = [layer["layer"] for layer in lines[-1]["layers"]]
    assert layers == [number for number, count in enumerate(counts(trained)) if count]
    changed = logits(attached(load(base), trained).eval())
    assert not torch.equal(changed, dense)
    with warnings.catch_warnings():  # peft asks transformers by a name that it is giving up
        warnings.simplefilter("ignore", FutureWarning)
        assert torch.equal(logits(PeftModel.from_pretrained(load(base), str(trained)).eval()), changed)

    if model_type not in ATTACHABLE:
        return
    with pytest.raises(UnsupportedError, match=rf"nothing to merge.*model_type '{model_type}'.*stays an adapter"):
        stages.merge(Merge(adapter=str(trained), out=str(tmp_path / "out")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "trained"]


def counts(adapter: Path) -> list[int]:
    """Experts of each layer."""
    found: list[int] = json.loads((adapter / "adapter_config.json").read_text())["num_experts"]
    return found


# What is refused


def damaged(base: Path, out: Path, change: Any) -> Path:
    """A copy of a model some of whose tensors are others."""
    shutil.copytree(base, out)
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


MLP = "model.layers.1.mlp."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda of: of.pop(MLP + "fc1.weight"), "tensor 'model.layers.1.mlp.fc1.weight' is missing"),
        (lambda of: of.pop(MLP + "fc1.bias"), r"1 tensors missing, by PhiForCausalLM.*layers.1.mlp.fc1.bias"),
        (lambda of: of.update({MLP + "gate.weight": torch.zeros(4, 32)}), "does not know.*layers.1.mlp.gate.weight"),
        (lambda of: of.update({"lm_head.bias": torch.zeros(3)}), "of another shape.*lm_head.bias"),
        (lambda of: of.update({MLP + "fc1.weight": torch.zeros(40, 32)}), "mlp.fc1 is not the same matrix in every"),
        (lambda of: of.update({MLP + "fc2.qweight": torch.zeros(2, dtype=torch.int32)}), "fc2.qweight' is quantised"),
        (lambda of: of.update({MLP + "fc1.weight": torch.zeros(48, 32, dtype=torch.int8)}), "is quantised; found I8"),
        (lambda of: [of.pop(name) for name in [*of] if "layers.1." in name], "found 1 layers, expected 2"),
        (lambda of: [of.pop(name) for name in [*of] if "layers." in name], "found 0 layers, expected 2"),
    ],
)
def test_tensors_that_the_stock_class_would_drop_or_draw(change: Any, message: str, tmp_path: Path) -> None:
    base = damaged(save_model("phi", tmp_path / "base"), tmp_path / "damaged", change)
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        attach(base, tmp_path / "out", "lora")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "phi4"},
            r"not known where the FFN.*'phi4'.*did you mean phi3?\?; ExpertsConfig\(ffn",
        ),
        ({"model_type": "gpt2"}, "not known where the FFN"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the model is quantised.*gptq"),
        ({"auto_map": {"AutoModelForCausalLM": "mine.Mine"}}, "names code of its own.*auto_map"),
        ({"num_local_experts": 4}, "a mixture of experts already"),
        ({"num_hidden_layers": 3}, "found 2 layers, expected 3"),
        ({"num_hidden_layers": "two"}, "found 2 layers, expected two"),
        ({"intermediate_size": 96}, "of another shape, by PhiForCausalLM"),
        ({"num_attention_heads": "four"}, "transformers knows no causal language model of this config"),
    ],
)
def test_configs_that_say_something_else(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    base = save_model("phi", tmp_path / "base")
    edit_json(base / "config.json", **fields)
    with pytest.raises(InputError, match=message):
        attach(base, tmp_path / "out", "lora")
    assert not (tmp_path / "out").exists()


def test_masks_of_old_checkpoints_do_not_count(tmp_path: Path) -> None:
    """As Pythia has them: GPTNeoXForCausalLM itself names them as no weights."""

    def add(tensors: dict[str, Tensor]) -> None:
        for layer in range(2):
            start = f"gpt_neox.layers.{layer}.attention."
            tensors[start + "bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
            tensors[start + "masked_bias"] = torch.tensor(-1e9)
            tensors[start + "rotary_emb.inv_freq"] = torch.ones(4)

    base = damaged(save_model("gpt_neox", tmp_path / "base"), tmp_path / "old", add)
    adapter = attach(base, tmp_path / "adapter", "lora")
    assert torch.equal(logits(attached(load(base), adapter).eval()), logits(load(base)))


def test_an_ffn_with_more_in_it_is_refused(tmp_path: Path) -> None:
    """BitNet normalises its hidden activation: what the names say would compute something else."""
    base = save_model("bitnet", tmp_path)
    names = Modules("mlp", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj").ffn
    with pytest.raises(ValueError, match=r"mlp computes with ffn_sub_norm too"):
        wrap(load(base), ffn=names, attention=[])


@pytest.mark.parametrize(
    "ffn",
    [
        {"block": "mlp", "gate": "mlp.gate_proj", "down": "mlp.down_proj"},
        {"block": "mlp", "up": "mlp.up_proj", "gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj"},
        {"block": "mlp", "up": "mlp.up_proj"},
        {"block": "mlp", "up": "mlp.up_proj", "down": "mlp.down_proj", "norm": "mlp.norm"},
    ],
)
def test_names_that_make_no_ffn(ffn: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"ffn is .*expected the names of block, down and gate, up"):
        ExpertsConfig(ffn=ffn)


# In use


def test_it_writes_and_says_what_it_cannot_become(tmp_path: Path) -> None:
    base = save_model("starcoder2", tmp_path / "base")
    done = stages.attach(Attach(model=str(base), out=str(tmp_path / "adapter"), experts=(4,)))
    assert done.notes == (
        "`merge` cannot write this adapter as a plain model: no mixture of experts is known for its base (starcoder2)",
    )
    request = Generate(model=str(tmp_path / "adapter"), prompt="Thus saith", max_new_tokens=4, dtype="f32")
    dense = Generate(model=str(base), prompt="Thus saith", max_new_tokens=4, dtype="f32")
    assert stages.generate(request) == stages.generate(dense)
