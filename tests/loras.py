"""LoRA adapters of the random models, made and saved by peft itself."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

FFN = ["gate_proj", "up_proj", "down_proj"]


def save_lora(model: Path, directory: Path, *, dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
    """Save a LoRA on the model in `model` whose A and B are drawn, wide enough that the model notices."""
    torch.manual_seed(sum(directory.name.encode()))
    with warnings.catch_warnings():  # of names that transformers gives up, and of kinds of LoRA
        warnings.simplefilter("ignore")
        settings = {"r": 4, "target_modules": FFN, "task_type": "CAUSAL_LM", **fields}
        adapted: Any = get_peft_model(load(model), LoraConfig(**settings))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.2)
        adapted.to(dtype).save_pretrained(directory)
    return directory


def load(model: Path) -> Any:
    """In float64, so that what differs is not the rounding of the forward pass."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()


def merged(model: Path, lora: Path) -> Any:
    """Return the model with a LoRA merged by peft."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted: Any = PeftModel.from_pretrained(load(model), str(lora))
        return adapted.merge_and_unload().eval()


def configure(lora: Path, **fields: Any) -> Path:
    """Change fields of a saved LoRA's config."""
    path = lora / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return lora


def tensors_of(lora: Path) -> dict[str, Tensor]:
    return load_file(lora / "adapter_model.safetensors")


def replace_tensors(lora: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file(dict(tensors), lora / "adapter_model.safetensors")
    return lora
