"""Adds LoRA updates to attention, experts and routers by peft, and loads them from a checkpoint."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
from torch import nn

from upcycle.errors import InputError
from upcycle.moe.auto import is_text
from upcycle.moe.routing import Router
from upcycle.requests.train import Train

DIRECTORY = "state/adapter"
"""Of a checkpoint whose model is merged: the adapter by itself."""

_PREFIX = "base_model.model."


def wrapped(model: Any, routers: list[Router], request: Train) -> Any:
    """Return peft's wrapper of `model`: low-rank updates of every linear layer of the attention, or of the whole layer
    where it is dense, and of the fused weights of experts and routers. Everything else is frozen.

    Raises InputError where there is nothing to adapt.
    """
    inside = {id(module) for router in routers for module in (*router.experts.modules(), router.module)}
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and id(module) not in inside and is_text(model, name)
    ]
    fused = [
        f"{name}.{parameter}"
        for router in routers
        for name in (router.name, router.experts_name)
        for parameter, value in model.get_submodule(name).named_parameters(recurse=False)
        if value.ndim > 1
    ]
    if not linear and not fused:
        raise InputError("has no linear layers that LoRA could adapt", where=request.model)
    torch.manual_seed(request.seed)  # of the A matrices; B starts at zero
    config = LoraConfig(
        r=request.lora_rank,
        lora_alpha=request.lora_alpha,  # type: ignore[arg-type]
        target_modules=linear,
        target_parameters=fused,
        lora_dropout=0.0,  # peft has none for fused weights
        task_type="CAUSAL_LM",
    )
    local = Path(request.model).expanduser()
    model.name_or_path = str(local.resolve()) if local.is_dir() else request.model  # found from anywhere
    with warnings.catch_warnings():  # peft asks a model of transformers by a name that it is giving up
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def is_adapted(model: Any) -> bool:
    """Whether this is peft's wrapper of a model."""
    return isinstance(model, PeftModel)


def restore(model: Any, checkpoint: Path) -> None:
    """Give an adapted model the adapter in a checkpoint; raise InputError unless it fits exactly."""
    directory = checkpoint / DIRECTORY if (checkpoint / DIRECTORY).is_dir() else checkpoint
    result: Any = set_peft_model_state_dict(model, load_peft_weights(str(directory), device="cpu"))
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise InputError(
            "the adapter does not fit the model", where=directory, found=(missing or result.unexpected_keys)[0]
        )


def plain_name(name: str) -> str:
    """Return the name that a parameter or module has without peft's wrapper."""
    return name.removeprefix(_PREFIX)
