"""The base of an adapter: a dense model as adapter experts see it, by the names of its modules and their shapes.

A model that a pair can express is held against it, so that what is trained can be merged. Of any other the names are
known (`families.dense.attachable`), the shapes are read from the headers, and `adapt.stock` holds every other tensor
against the stock class of transformers.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from upcycle.checkpoint.header import TensorSpec
from upcycle.checkpoint.reader import Checkpoint
from upcycle.errors import CheckpointError, UnsupportedError
from upcycle.families.dense.attachable import ATTACHABLE, Attachable
from upcycle.families.dense.dense import Modules
from upcycle.families.find import refuse_other_kinds
from upcycle.families.match import FLOATS, check_layers, match, refuse_quantised
from upcycle.families.pairs import DENSE
from upcycle.message import quoted
from upcycle.option import nearest

BY_HAND = "ExpertsConfig(ffn=..., attention=...) of upcycle.adapters names the modules of any other model, in Python"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class AdapterBase:
    """A dense checkpoint that adapter experts fit."""

    model_type: str
    modules: Modules
    layer: str  # what the names of a layer's modules begin with
    layers: int
    shapes: Mapping[str, Shape]  # (outputs, inputs) of every linear layer, by its name from the layer on
    has_pair: bool  # it can become a mixture of experts

    @property
    def hidden(self) -> int:
        """D, the width of what the FFN reads and gives."""
        return self.shapes[self.modules.down][0]

    @property
    def width(self) -> int:
        """F, the FFN's neurons."""
        return self.shapes[self.modules.down][1]

    def module(self, layer: int, name: str) -> str:
        """Return the whole name of a module that is named from the layer on."""
        return f"{self.layer.format(layer=layer)}.{name}"


def known_types() -> list[str]:
    """Return every `model_type` whose modules are known, sorted."""
    return sorted({*ATTACHABLE, *(name for name, dense in DENSE.items() if dense.modules)})


def row_of(config: Mapping[str, Any]) -> Attachable:
    """Return the names of the model of a config; raise UnsupportedError where they are not known."""
    model_type = config.get("model_type")
    name = model_type if isinstance(model_type, str) else ""
    dense = DENSE.get(name)
    if dense is not None and dense.modules is not None:
        return Attachable(dense.title, dense.modules, dense.spine.layer)
    if name not in ATTACHABLE:
        close = nearest(name, known_types())
        raise UnsupportedError(
            "it is not known where the FFN of this model is",
            found=f"model_type {quoted(model_type)}",
            expected=f"one of {', '.join(known_types())}",
            hint="; ".join(hint for hint in (close, BY_HAND) if hint),
        )
    return ATTACHABLE[name]


def adapter_base(checkpoint: Checkpoint) -> AdapterBase:
    """Return the checkpoint as the base of an adapter.

    Raises UnsupportedError for a model whose modules are not known, that is quantised, a mixture of experts or runs
    code of its own, CheckpointError for one that is incomplete.
    """
    config = checkpoint.config
    refuse_other_kinds(config)
    row = row_of(config)
    has_pair = _has_pair(checkpoint)
    if not has_pair:
        refuse_quantised(checkpoint)
        _refuse_own_code(checkpoint)
        _refuse_other_dtypes(checkpoint, row)
    layers = check_layers(checkpoint, row.layer, config.get(row.count))
    shapes = _shapes(checkpoint, row, layers)
    return AdapterBase(config["model_type"], row.modules, row.layer, layers, shapes, has_pair)


def _has_pair(checkpoint: Checkpoint) -> bool:
    """Whether there is a mixture of experts that the model can become; a setting may have none, as OLMo 3's windows."""
    if checkpoint.config["model_type"] not in DENSE:
        return False
    try:
        match(checkpoint)
    except UnsupportedError:
        return False
    return True


def _refuse_own_code(checkpoint: Checkpoint) -> None:
    found = checkpoint.config.get("auto_map")
    if found is not None:
        raise UnsupportedError(
            "the model names code of its own, which may compute something else than transformers does",
            where=checkpoint.directory,
            found=f"auto_map {quoted(found)}",
            hint="where transformers' own class is right about it, take auto_map out of config.json",
        )


def _refuse_other_dtypes(checkpoint: Checkpoint, row: Attachable) -> None:
    """What lies in a layer's linear modules in another dtype is quantised: GPTQ and AWQ name such parts otherwise."""
    linear = "|".join(map(re.escape, (*row.modules.linear, *row.modules.attention)))
    part = re.compile(re.escape(row.layer).replace(r"\{layer\}", r"\d{1,9}") + rf"\.({linear})\..*")
    for name, spec in checkpoint.tensors.items():
        if spec.dtype not in FLOATS and part.fullmatch(name):
            raise UnsupportedError(
                f"tensor {name!r} is quantised", where=spec.path, found=spec.dtype, expected=", ".join(FLOATS),
                hint="dequantise it first, or take the model that it was made from",
            )  # fmt: skip


def _shapes(checkpoint: Checkpoint, row: Attachable, layers: int) -> dict[str, Shape]:
    """Return the shapes of the linear layers; raise where one is not there or not alike in every layer."""
    shapes: dict[str, Shape] = {}
    for name in (*row.modules.linear, *row.modules.attention):
        for spec in _weights(checkpoint, row, name, layers):
            expected = shapes.setdefault(name, spec.shape)
            if spec.shape != expected or len(expected) != 2:
                raise UnsupportedError(
                    f"{name} is not the same matrix in every layer", where=spec.path,
                    found=f"{spec.shape} of {spec.name}", expected=expected if len(expected) == 2 else "a matrix",
                )  # fmt: skip
    hidden, width = shapes[row.modules.down]
    for part, (name, half) in row.modules.matrices.items():
        rows = width if half is None else 2 * width
        if part != "down" and shapes[name] != (rows, hidden):
            raise CheckpointError(
                f"{name} does not fit {row.modules.down}", where=checkpoint.directory, found=shapes[name],
                expected=(rows, hidden),
            )  # fmt: skip
    return shapes


def _weights(checkpoint: Checkpoint, row: Attachable, name: str, layers: int) -> Iterator[TensorSpec]:
    for layer in range(max(layers, 1)):  # of none at all the first is missing
        tensor = f"{row.layer.format(layer=layer)}.{name}.weight"
        spec = checkpoint.tensors.get(tensor)
        if spec is None:
            raise CheckpointError(
                f"tensor {tensor!r} is missing", where=checkpoint.directory,
                hint="the checkpoint is incomplete, or other than what transformers saves for this model_type",
            )  # fmt: skip
        yield spec
