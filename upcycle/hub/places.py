"""Takes paths of this machine, which programs have written into configs, out of what is published."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from upcycle.checkpoint.adapter import ADAPTER_CONFIG
from upcycle.checkpoint.reader import CONFIG_FILE, GENERATION_FILE
from upcycle.checkpoint.strict_json import parse_object

_FILES = (CONFIG_FILE, GENERATION_FILE, ADAPTER_CONFIG, "tokenizer_config.json")
_FIELDS = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")
"""What transformers has written of where something came from. An adapter's base is another matter: `adapter_base`."""
_PLACE = re.compile(r"[/~\\.]|[A-Za-z]:[\\/]")


def without_places(files: Mapping[str, Callable[[], bytes]], directory: Path) -> dict[str, bytes]:
    """Return what is to be published in the place of configs that name paths; `files` are names, and how to read them.

    Raises CheckpointError for a config with such a field that is not sound JSON.
    """
    found: dict[str, bytes] = {}
    for name in _FILES:
        data = files[name]() if name in files else b""
        if any(f'"{field}"'.encode() in data for field in _FIELDS):
            said = parse_object(data, directory / name)
            kept = _without(said)
            if kept != said:
                found[name] = json.dumps(kept, indent=2, ensure_ascii=False).encode() + b"\n"
    return found


def _without(said: dict[str, Any]) -> dict[str, Any]:
    """Return an object without fields that hold paths, and so of the objects in it."""
    kept = {name: value for name, value in said.items() if not (name in _FIELDS and _is_place(value))}
    return {name: _without(value) if isinstance(value, dict) else value for name, value in kept.items()}


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and _PLACE.match(value) is not None
