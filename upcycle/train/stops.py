"""The tokens at which a model stops writing: those of the model that is trained, and the one that --eos adds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upcycle.checkpoint.reader import GENERATION_FILE
from upcycle.checkpoint.strict_json import read_object

_FIELD = "eos_token_id"


def stops_of(model: Any) -> list[int]:
    """Return the tokens at which transformers' `generate` stops (generation_config.json, or else config.json)."""
    return _listed(model.generation_config.eos_token_id)


def add_stop(directory: Path, stops: Sequence[int], token: int) -> None:
    """Write a token beside those at which the model stops into the generation_config.json of `directory`.

    `stops` are the model's, for a directory whose file names none, or that has no such file.
    """
    path = directory / GENERATION_FILE
    fields = read_object(path) if path.is_file() else {}
    before = _listed(fields.get(_FIELD)) or [stop for stop in stops if stop != token]
    if token not in before:
        fields[_FIELD] = [*before, token]
        path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _listed(value: Any) -> list[int]:
    """One token, several or none, as the file may have it."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
