"""Loads an adapter onto its base model, and finds the layers with experts in it."""

import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

import upcycle.adapters  # noqa: F401 - registers the method
from upcycle.adapters.layers import ExpertsLayer
from upcycle.errors import InputError


def attached(model: Any, adapter: Path, *, trainable: bool = False) -> Any:
    """Return peft's wrapper of the base `model` with the adapter, of experts or another, in the directory `adapter`.

    Its parameters are float32, whatever the model's are. Raises InputError where the adapter does not fit the model, or
    lacks a tensor: peft itself would leave a router that is missing as it was drawn.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that it is giving up
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, OSError, UserWarning) as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(said[:2])[:300] or type(error).__name__
        raise InputError(f"this adapter cannot be loaded ({reason})", where=adapter) from error


def expert_layers(model: nn.Module) -> list[tuple[str, ExpertsLayer]]:
    """Return every layer of `model` that has adapter experts, with its name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ExpertsLayer)]
