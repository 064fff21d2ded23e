"""Loads and saves an adapter that is trained on a frozen model: upcycle's adapter experts, or a plain LoRA."""

import json
import shutil
from pathlib import Path
from typing import Any

from upcycle.adapters.load import attached, expert_layers
from upcycle.checkpoint.adapter import ADAPTER_CONFIG, open_adapter
from upcycle.checkpoint.strict_json import read_object
from upcycle.moe.adapters import AdapterRouter
from upcycle.train.lora import restore


def with_adapter(model: Any, adapter: Path) -> Any:
    """Return peft's wrapper of `model` with the adapter in a directory, in float32, and everything else frozen.

    The losses by which the routers of adapter experts would train in any loop are switched off.
    Raises InputError for adapters of other kinds, and for those that do not fit the model.
    """
    opened = open_adapter(adapter)
    opened.check_kind()
    wrapped = attached(model, adapter, trainable=True)
    if not opened.has_experts:
        restore(wrapped, adapter)  # again: peft rounds to the model's data type before it widens to float32
    for _, layer in expert_layers(wrapped):
        for router in layer.upcycle_router.children():
            assert isinstance(router, AdapterRouter)  # noqa: S101
            router.balance_coef = router.z_coef = 0.0
    return wrapped


def save_adapter(model: Any, directory: Path, source: Path, base: Path) -> None:
    """Write the adapter of a wrapped model; its config is that of `source`, but for where its base lies."""
    model.save_pretrained(directory, save_embedding_layers=False)  # else peft asks the Hub about the base
    config, place = read_object(source / ADAPTER_CONFIG), str(base.resolve())
    if config.get("revision") or config.get("base_model_name_or_path") == place:
        shutil.copyfile(source / ADAPTER_CONFIG, directory / ADAPTER_CONFIG)
    else:  # it was found elsewhere
        config["base_model_name_or_path"] = place
        (directory / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
