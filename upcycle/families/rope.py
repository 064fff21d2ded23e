"""Rotary position settings, read in every dialect that checkpoints use and written in all that readers need.

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`; both are found on the Hub.
A reader that misses its dialect falls back to its own default and is silently wrong, so the output has all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from upcycle.errors import UnsupportedError
from upcycle.message import quoted

TYPES: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""rope_type -> the settings it cannot do without (transformers, modeling_rope_utils.py)."""

_LISTS = ("short_factor", "long_factor")
_NUMBERS = (
    "factor", "attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor", "mscale",
    "mscale_all_dim", "original_max_position_embeddings",
)  # fmt: skip

FIELDS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings")
"""The config fields that this module accounts for."""


@dataclass(frozen=True)
class Rope:
    """How a dense class reads its rotary settings."""

    theta: float  # of a config that names none
    aliases: Mapping[str, str] = field(default_factory=dict)  # old names of rope types -> what the class takes them for
    only: tuple[str, ...] = ()  # types of scaling that the class knows; empty: all of TYPES
    original_length: int | None = None  # the class's default of original_max_position_embeddings, if it has that field
    rotated: float = 1.0  # the class's default of partial_rotary_factor, the share of each head that is rotated
    partial: bool = False  # the class rotates that share alone; others ignore it, or break where it is not 1
    needs_length: bool = False  # the mixture's class stops without original_max_position_embeddings, where it scales
    of: str | None = None  # the type of layer whose settings count, where the class keeps them apart by type


def rope_fields(config: Mapping[str, Any], rope: Rope, *, partial: bool = False) -> dict[str, Any]:
    """Return the output config's rope fields for a source config; raise UnsupportedError if it cannot be expressed.

    `partial` says that the target can rotate a part of each head.
    """
    scaling, parameters = config.get("rope_scaling"), config.get("rope_parameters")
    for name, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if value is not None and not isinstance(value, dict):
            raise UnsupportedError(f"config.json: {name} is not an object", found=repr(value)[:60])
    chosen = _settings_of(rope.of, parameters or {}, scaling or {})
    if any(isinstance(value, dict) for value in chosen.values()):
        raise UnsupportedError("config.json: rope settings differ between layer types, which the target cannot express")
    kind = chosen.pop("rope_type", None) or chosen.get("type") or "default"
    chosen["rope_type"] = rope.aliases.get(kind, kind) if isinstance(kind, str) else kind
    chosen.pop("type", None)
    theta = _first(chosen.pop("rope_theta", None), config.get("rope_theta"), rope.theta)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
        raise UnsupportedError("config.json: rope_theta is not a positive number", found=repr(theta)[:60])
    rotated = _first(chosen.pop("partial_rotary_factor", None), config.get("partial_rotary_factor"), rope.rotated)
    if not (partial and rope.partial) and rotated not in (1, 1.0):
        ignores = "the target" if rope.partial else "the dense class"
        raise UnsupportedError(
            f"config.json: partial_rotary_factor is not 1, which {ignores} ignores", found=_number_or_quoted(rotated)
        )
    _check_settings(chosen, rope.only)
    scaled = chosen["rope_type"] != "default"
    original = config.get("original_max_position_embeddings", rope.original_length if scaled else None)
    _check_length(chosen, original, rope)
    _check_settings({"rope_type": "default", "original_max_position_embeddings": original})
    fields = _in_all_dialects(chosen, theta, original)
    if partial:
        if not _is_number(rotated) or not 0 < rotated <= 1:
            raise UnsupportedError(
                "config.json: partial_rotary_factor is not between 0 and 1", found=_number_or_quoted(rotated)
            )
        fields["partial_rotary_factor"] = fields["rope_parameters"]["partial_rotary_factor"] = rotated
    return fields


def _check_length(chosen: Mapping[str, Any], beside: Any, rope: Rope) -> None:
    """Raise UnsupportedError for settings that count from a length, where neither they nor the config have it."""
    counts = rope.needs_length and chosen["rope_type"] in ("yarn", "longrope")
    if counts and beside is None and chosen.get("original_max_position_embeddings") is None:
        raise UnsupportedError(
            f"config.json: rope settings of type {chosen['rope_type']} lack original_max_position_embeddings, without "
            "which the target does not load"
        )


def _settings_of(kind: str | None, parameters: dict[str, Any], scaling: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that count, in a dict of their own; `kind` is the type of layer, where they are kept apart.

    transformers 5 gives rope_scaling the precedence when both are there (modeling_rope_utils.py); where types of
    layers have settings of their own it adds it to those of full attention (`Olmo3Config`).
    """
    if kind is None:
        return dict(scaling or parameters)
    own = parameters.get(kind, None if parameters else {})
    if not isinstance(own, dict):
        raise UnsupportedError(f"config.json: rope_parameters has no settings of {kind}", found=quoted(parameters))
    return {**own, "rope_type": own.get("rope_type") or own.get("type") or "default", **scaling}


def halves(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the order of a head's rows that makes pairs of neighbours, as some classes rotate, pairs across halves.

    Only the part of the head that is rotated takes part: of 6 rows, 4 of them rotated, 0 2 1 3 4 5.
    """
    head = config["head_dim"]
    rotated = int(head * config.get("partial_rotary_factor", 1.0))
    return (*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, head))


def _check_settings(chosen: Mapping[str, Any], only: tuple[str, ...] = ()) -> None:
    """Refuse settings that no reader could use, so that it is not each reader that does it in its own way."""
    kind, known = chosen["rope_type"], ("default", *only) if only else tuple(TYPES)
    if not isinstance(kind, str) or kind not in known:
        raise UnsupportedError(
            "config.json: unknown rope_type", found=_number_or_quoted(kind), expected=f"one of {', '.join(known)}"
        )
    missing = [name for name in TYPES[kind] if chosen.get(name) is None]
    if missing:
        raise UnsupportedError(f"config.json: rope settings of type {kind} lack {', '.join(missing)}")
    for name in (*_NUMBERS, *_LISTS):
        value = chosen.get(name)
        numbers = value if name in _LISTS and isinstance(value, list) else [value]
        if value is not None and not all(_is_number(number) for number in numbers):
            raise UnsupportedError(
                f"config.json: {name} of the rope settings is not a number", found=_number_or_quoted(value)
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _number_or_quoted(value: Any) -> Any:
    return value if isinstance(value, int | float) else quoted(value)


def _first(*values: Any) -> Any:
    """Return the first value that is not null; zero counts, so that it is refused rather than passed over."""
    return next((value for value in values if value is not None), None)


def _in_all_dialects(chosen: dict[str, Any], theta: float, original_length: int | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"rope_theta": theta, "rope_parameters": {"rope_theta": theta, **chosen}}
    if chosen["rope_type"] != "default":
        fields["rope_scaling"] = dict(chosen)
    if original_length is not None:
        fields["original_max_position_embeddings"] = original_length
    return fields
