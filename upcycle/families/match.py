"""Holds a checkpoint against its pair: whether all of its config and tensors can be expressed by the target.

Everything is accounted for: a config field or tensor without a rule is refused by name, never dropped in silence.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upcycle.checkpoint.header import TensorSpec, rows_of
from upcycle.checkpoint.reader import Checkpoint
from upcycle.errors import CheckpointError, InputError, UnsupportedError
from upcycle.families.config import sizes_of
from upcycle.families.dense.dense import Dense
from upcycle.families.find import find_pairs, fitting
from upcycle.families.pairs import Form, Pair
from upcycle.families.parts import HEAD, Place, dimension
from upcycle.families.targets.target import Target
from upcycle.message import quoted

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights that are not quantised."""

_QUANTISED_HOW = ("quant_method", "bits", "fmt", "load_in_4bit", "load_in_8bit")
_DEQUANTISE = "dequantise it first, or take the model that it was made from"


@dataclass(frozen=True)
class Match:
    """A dense checkpoint seen as one side of a pair."""

    pair: Pair
    dense_config: Mapping[str, Any]
    config: Mapping[str, Any]  # the target's, but for what a request chooses
    sizes: Mapping[str, int]  # what the letters of `families.parts` stand for, and L layers

    @property
    def dense(self) -> Dense:
        """What is known of the dense model."""
        return self.pair.dense

    @property
    def target(self) -> Target:
        """What is known of the mixture of experts."""
        return self.pair.target

    @property
    def layers(self) -> int:
        """The number of layers."""
        return self.sizes["L"]

    @property
    def cache_width(self) -> int:
        """The number of keys and values that one token leaves in the cache, in all layers."""
        width = 0
        for layer in range(self.layers):
            places = [self.place(part, layer) for part in self.dense.cached]
            for place in places:
                kept = place or places[0]  # without a projection of their own, values are the keys
                first, end = self.shape(kept.rows or ("0", kept.shape[0]), layer) if kept else (0, 0)
                width += end - first
        return width

    @property
    def tied(self) -> bool:
        """Whether the output's head is its embeddings."""
        return bool(self.pair.constants.get("tie_word_embeddings", self.config["tie_word_embeddings"]))

    def place(self, part: str, layer: int = 0) -> Place | None:
        """Return the place of a part of the dense model; None where it has no such part, or not in this layer."""
        place = self.dense.parts.get(part)
        return place if place and (place.when is None or place.when.holds(self.dense_config, layer)) else None

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Yield every tensor that the dense checkpoint has, as (one of its parts, its shape, its name)."""
        seen = set()
        for part, place in self.dense.parts.items():
            for layer in range(self.layers) if place.per_layer else (0,):
                name = place.tensor.format(layer=layer)
                if name not in seen and self.place(part, layer):  # else it holds other rows of the same one
                    seen.add(name)
                    yield part, self.shape(place.shape, layer), name

    def sizes_in(self, layer: int) -> Mapping[str, int]:
        """Return what the letters stand for in one layer."""
        own = {letter: size(self.config, layer) for letter, size in self.dense.layer_sizes.items()}
        return {**self.sizes, **own} if own else self.sizes

    def shape(self, letters: Sequence[str], layer: int = 0) -> tuple[int, ...]:
        """Return the shape that `letters` stand for in a layer."""
        sizes = self.sizes_in(layer)
        return tuple(dimension(letter, sizes) for letter in letters)

    def part(self, checkpoint: Checkpoint, part: str, layer: int = 0) -> TensorSpec | None:
        """Return where a part of the dense model lies in `checkpoint`; None where it is not there, as a tied head."""
        place = self.place(part, layer)
        spec = checkpoint.tensors.get(place.tensor.format(layer=layer)) if place else None
        if spec is None or place is None or place.rows is None:
            return spec
        first, end = self.shape(place.rows, layer)
        return rows_of(spec, first, end)


def match(
    checkpoint: Checkpoint, ignored_fields: Sequence[str] = (), target: str | None = None, form: Form = "full"
) -> Match:
    """Find the pair of `checkpoint` and hold its config and tensors against it.

    `target` is the mixture's type; without one it is the first that can express the config.

    Raises UnsupportedError for what the target cannot express, CheckpointError for a config that lies about the
    tensors. `ignored_fields` names config fields that the user declares to have no influence.
    """
    find_pairs(checkpoint.config, target, form)
    refuse_quantised(checkpoint)
    pair, config = fitting(checkpoint.config, ignored_fields, target, form)
    matched = Match(pair, pair.dense.as_read(checkpoint.config), config, sizes_of(pair, config))
    _check_tensors(matched, checkpoint)
    return matched


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """Say how a model is quantised that says so itself: clearer than its config or tensors one by one."""
    for name in ("quantization_config", "compression_config"):
        settings = checkpoint.config.get(name)
        if settings is None:
            continue
        said = settings if isinstance(settings, dict) else {}
        how = [f"{field} {quoted(said[field])}" for field in _QUANTISED_HOW if said.get(field)]
        raise UnsupportedError(
            "the model is quantised",
            where=checkpoint.directory,
            found=f"{name} with {', '.join(how)}" if how else f"{name} {quoted(settings)}",
            hint=_DEQUANTISE,
        )


def _check_tensors(matched: Match, checkpoint: Checkpoint) -> None:
    """Every expected tensor is there with its shape and a float dtype, and nothing else is."""
    tensors, dense = checkpoint.tensors, matched.dense
    check_layers(checkpoint, dense.spine.layer, matched.layers)
    tied = matched.config["tie_word_embeddings"]
    expected: set[str] = set()
    for part, shape, name in matched.tensors():
        expected.add(name)
        spec = tensors.get(name)
        if spec is None:
            if part == HEAD and tied:
                continue
            raise _missing(name, checkpoint, dense.parts[HEAD].tensor)
        if spec.dtype not in FLOATS:
            raise UnsupportedError(
                f"tensor {name!r} is quantised",
                where=spec.path,
                found=spec.dtype,
                expected=", ".join(FLOATS),
                hint=_DEQUANTISE,
            )
        if spec.shape != shape:
            raise CheckpointError(
                f"tensor {name!r} does not match config.json", where=spec.path, found=spec.shape, expected=shape
            )
    extra = [name for name in tensors if name not in expected]
    unknown = [name for name in extra if not any(re.fullmatch(known, name) for known in dense.ignored_tensors)]
    if unknown:
        raise UnsupportedError(
            f"{len(unknown)} tensors have no place in {matched.target.model_type}",
            where=checkpoint.directory,
            found=", ".join(name[:120] for name in unknown[:4]),
        )


def _missing(name: str, checkpoint: Checkpoint, head: str) -> InputError:
    """The error for an absent tensor: GPTQ, AWQ and others store a weight in parts of other names."""
    stem = name.removesuffix("weight")
    parts = [spec for part, spec in checkpoint.tensors.items() if part.startswith(stem)]
    if all(spec.dtype in FLOATS for spec in parts):
        hint = "config.json says tie_word_embeddings = false" if name == head else None
        return CheckpointError(f"tensor {name!r} is missing", where=checkpoint.directory, hint=hint)
    return UnsupportedError(
        f"tensor {name!r} is quantised",
        where=parts[0].path,
        found=", ".join(f"{spec.name.removeprefix(stem)[:40]} in {spec.dtype}" for spec in parts[:4]),
        hint=_DEQUANTISE,
    )


def check_layers(checkpoint: Checkpoint, layer: str, count: int | None) -> int:
    """Return how many layers there are; raise CheckpointError unless they are `count`, where a config tells, from 0 on.

    Compared first: the most common lie of a config deserves its own sentence, and this bounds the work.
    """
    prefix = re.escape(layer).replace(r"\{layer\}", r"(\d{1,9})")
    numbers = {int(found[1]) for name in checkpoint.tensors if (found := re.match(rf"{prefix}\.", name))}
    expected = len(numbers) if count is None else count
    if len(numbers) != expected or (numbers and max(numbers) != expected - 1):
        raise CheckpointError(
            "the layers do not match config.json (num_hidden_layers)",
            where=checkpoint.directory,
            found=f"{len(numbers)} layers",
            expected=f"{expected}, numbered from 0",
            hint="the checkpoint is incomplete or its config is another model's",
        )
    return len(numbers)
