"""Random models of every pair, a file for each group of families: `MODELS` in each is a dict of name to `Model`.

A model is drawn so that a wrong field shows: no setting is its class's default, biases are not zero, norms not one.
"""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.models import SMALL, draw_weights


@dataclass(frozen=True)
class Model:
    """A dense model with random weights, and what becomes of it."""

    model_type: str  # of the dense model
    becomes: str  # model_type of the mixture that `convert` makes by `options`
    fields: dict[str, Any] = field(default_factory=dict)  # of its config, beside SMALL; `...` leaves one of SMALL out
    options: dict[str, Any] = field(default_factory=dict)  # of the conversion, beside 4 experts, 2 of them active
    tolerance: float = 1e-5  # of logits, relative to the largest
    exact: bool = True  # what the receipt says
    dtype: torch.dtype = torch.float32  # of the weights on disk
    spread: float = 0.15  # standard deviation of its matrices
    greedy: bool = True  # twenty tokens of greedy text are the same


def save_model(name: str, model: Model, directory: Path) -> Path:
    """Save the random dense model; return its directory."""
    fields = {key: value for key, value in {**SMALL, **model.fields}.items() if value is not ...}
    if "rope_parameters" in fields:
        fields.pop("rope_theta", None)
    torch.manual_seed(sum(name.encode()))
    config = CONFIG_MAPPING[model.model_type](**fields)
    dense = draw_weights(AutoModelForCausalLM.from_config(config), model.spread)
    dense.to(model.dtype).save_pretrained(directory)
    return directory


MODELS: dict[str, Model] = {}
for _module in iter_modules(__path__):
    _more = import_module(f"{__name__}.{_module.name}").MODELS
    assert not MODELS.keys() & _more, "two models have one name"
    MODELS |= _more
