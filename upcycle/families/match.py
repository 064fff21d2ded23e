"""Holding a checkpoint against the table: which family it is, whether all of it can be expressed, and as what.

Everything is accounted for: a config field or tensor without a rule is refused by name, never dropped in silence.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upcycle.checkpoint.reader import Checkpoint
from upcycle.errors import CheckpointError, InputError, RecipeError, UnsupportedError
from upcycle.families import rope
from upcycle.families.family import Carry, Family, Keep, Only, Rule, Uniform
from upcycle.families.table import ACTIVATIONS, ALREADY_MOE, DEFAULT_ROPE_THETA, FAMILIES

MAX_SIZE = 2**31 - 1
"""Largest dimension that a config may claim."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights that are not quantised."""

_MAX_PROBLEMS = 8  # told at once
_QUANTISED_HOW = ("quant_method", "bits", "fmt", "load_in_4bit", "load_in_8bit")
_DEQUANTISE = "dequantise it first, or take the model that it was made from"


@dataclass(frozen=True)
class Match:
    """A dense checkpoint seen as a member of its family."""

    family: Family
    config: Mapping[str, Any]  # the MoE's config, but for what a request chooses
    sizes: Mapping[str, int]  # the letters of `family.TensorRow.shape`, and L layers

    def shape(self, letters: Sequence[str]) -> tuple[int, ...]:
        """Return the shape that `letters` stand for."""
        return tuple(self.sizes[letter] for letter in letters)


def match(checkpoint: Checkpoint, ignored_fields: Sequence[str] = ()) -> Match:
    """Find the family of `checkpoint` and hold its config and tensors against it.

    Raises UnsupportedError for what the target cannot express, CheckpointError for a config that lies about the
    tensors. `ignored_fields` names config fields that the user declares to have no influence.
    """
    family = find_family(checkpoint.config)
    _refuse_quantised(checkpoint)
    config = target_config(family, checkpoint.config, ignored_fields)
    matched = Match(family, config, _sizes(config))
    _check_tensors(matched, checkpoint)
    return matched


def find_family(config: Mapping[str, Any]) -> Family:
    """Return the family of a source config; raise UnsupportedError when there is none."""
    model_type = config.get("model_type")
    experts = [name for name in ALREADY_MOE if config.get(name) not in (None, 0)]
    if experts:
        raise UnsupportedError(
            "the model is a mixture of experts already",
            found=f"{experts[0]} = {_short(config[experts[0]])}, {_short(model_type)}",
        )
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedError(
            "no mixture of experts is known for this model",
            found=f"model_type {_brief(model_type)}",
            expected=f"one of {', '.join(FAMILIES)}",
        )
    architectures = config.get("architectures")
    if architectures not in (None, [family.dense_class]):
        raise UnsupportedError(
            "the checkpoint holds another kind of model", found=_short(architectures), expected=family.dense_class
        )
    return family


def target_config(family: Family, config: Mapping[str, Any], ignored_fields: Sequence[str] = ()) -> dict[str, Any]:
    """Return the MoE's config fields for a dense config; raise UnsupportedError listing every one without a place."""
    result: dict[str, Any] = {"architectures": [family.moe_class], "model_type": family.moe}
    problems: list[str] = []
    for name, rule in family.fields.items():
        problem = _apply(name, rule, config, result)
        if problem:
            problems.append(problem)
    ruled = {*family.fields, *rope.FIELDS, "head_dim"}
    for name in ignored_fields:
        if name in ruled or name not in config:
            reason = "is accounted for, and is not left out" if name in ruled else "is not in config.json"
            raise RecipeError(f"--ignore-config {name}: the field {reason}", option="ignore_config")
    known = {*ruled, *ignored_fields}
    unknown = [name for name in config if name not in known]
    problems += [f"{_short(name)} = {_brief(config[name])}: not known to have a counterpart" for name in unknown]
    if problems:
        if len(problems) > _MAX_PROBLEMS:
            problems[_MAX_PROBLEMS:] = [f"and {len(problems) - _MAX_PROBLEMS} more"]
        raise UnsupportedError(
            f"config.json says what {family.moe} cannot express: " + "; ".join(problems),
            hint="if a field has no influence, --ignore-config NAME leaves it out" if unknown else None,
        )
    _derive_heads(config, result)
    result.update(rope.rope_fields(config, DEFAULT_ROPE_THETA))
    return result


def _apply(name: str, rule: Rule, config: Mapping[str, Any], result: dict[str, Any]) -> str | None:
    """Add what `rule` makes of the field to `result`, or return what is wrong with it."""
    value = config.get(name)
    if isinstance(rule, Carry):
        value = config.get(name, rule.default)
        if value is None and rule.kind == "number or null":  # the dense class takes null for its default
            value = rule.default
        result[name] = value
        return None if value is None and rule.kind == "size" else _kind_problem(name, value, rule.kind)
    if isinstance(rule, Keep) and name in config:
        result[name] = value
    if isinstance(rule, Only) and value is not None and value not in rule.values:
        return f"{name} = {_brief(value)}: {rule.why}"
    if isinstance(rule, Uniform) and value is not None and not _is_uniform(value, rule):
        return f"{name} = {_brief(value)}: {rule.why}"
    return None


def _is_uniform(value: Any, rule: Uniform) -> bool:
    if not isinstance(value, list):
        return False
    kinds = {str(item) for item in value}
    return len(kinds) <= 1 and kinds <= set(rule.values)


def _kind_problem(name: str, value: Any, kind: str) -> str | None:
    good = {
        "size": type(value) is int and 1 <= value <= MAX_SIZE,
        "number": _is_number(value),
        "number or null": _is_number(value),
        "flag": type(value) is bool,
        "known activation": value in ACTIVATIONS if isinstance(value, str) else False,
        "any": True,
    }[kind]
    return None if good else f"{name} = {_brief(value)}: expected a {kind}"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def _derive_heads(config: Mapping[str, Any], result: dict[str, Any]) -> None:
    required = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings",
    )  # fmt: skip
    for name in required:
        if result[name] is None:
            raise UnsupportedError(f"config.json: {name} is null")
    heads = result["num_attention_heads"]
    result["num_key_value_heads"] = result["num_key_value_heads"] or heads
    head_dim = config.get("head_dim")
    result["head_dim"] = result["hidden_size"] // heads if head_dim is None else head_dim
    problem = _kind_problem("head_dim", result["head_dim"], "size")
    if problem:
        raise UnsupportedError(f"config.json: {problem}")
    if heads % result["num_key_value_heads"]:
        raise UnsupportedError(
            "config.json: num_attention_heads is not a multiple of num_key_value_heads",
            found=f"{heads} and {result['num_key_value_heads']}",
        )


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    return {
        "V": config["vocab_size"],
        "D": config["hidden_size"],
        "F": config["intermediate_size"],
        "Q": config["num_attention_heads"] * config["head_dim"],
        "K": config["num_key_value_heads"] * config["head_dim"],
        "L": config["num_hidden_layers"],
    }


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    """Say how a model is quantised that says so itself: clearer than its config or tensors one by one."""
    for name in ("quantization_config", "compression_config"):
        settings = checkpoint.config.get(name)
        if settings is None:
            continue
        said = settings if isinstance(settings, dict) else {}
        how = [f"{field} {_brief(said[field])}" for field in _QUANTISED_HOW if said.get(field)]
        raise UnsupportedError(
            "the model is quantised",
            where=checkpoint.directory,
            found=f"{name} with {', '.join(how)}" if how else f"{name} {_brief(settings)}",
            hint=_DEQUANTISE,
        )


def _check_tensors(matched: Match, checkpoint: Checkpoint) -> None:
    """Every expected tensor is there with its shape and a float dtype, and nothing else is."""
    tensors, family = checkpoint.tensors, matched.family
    _check_layers(matched.sizes["L"], checkpoint)
    tied = matched.config["tie_word_embeddings"]
    expected: set[str] = set()
    for row, name in family.source_rows(matched.sizes["L"]):
        expected.add(name)
        spec = tensors.get(name)
        if spec is None:
            if row.tied_optional and tied:
                continue
            raise _missing(name, checkpoint)
        if spec.dtype not in FLOATS:
            raise UnsupportedError(
                f"tensor {name!r} is quantised",
                where=spec.path,
                found=spec.dtype,
                expected=", ".join(FLOATS),
                hint=_DEQUANTISE,
            )
        shape = matched.shape(row.shape)
        if spec.shape != shape:
            raise CheckpointError(
                f"tensor {name!r} does not match config.json", where=spec.path, found=spec.shape, expected=shape
            )
    extra = [name for name in tensors if name not in expected]
    unknown = [name for name in extra if not any(re.fullmatch(known, name) for known in family.ignored_tensors)]
    if unknown:
        raise UnsupportedError(
            f"{len(unknown)} tensors have no place in {family.moe}",
            where=checkpoint.directory,
            found=", ".join(name[:120] for name in unknown[:4]),
        )


def _missing(name: str, checkpoint: Checkpoint) -> InputError:
    """The error for an absent tensor: GPTQ, AWQ and others store a weight in parts of other names."""
    stem = name.removesuffix("weight")
    parts = [spec for part, spec in checkpoint.tensors.items() if part.startswith(stem)]
    if all(spec.dtype in FLOATS for spec in parts):
        hint = "config.json says tie_word_embeddings = false" if name == "lm_head.weight" else None
        return CheckpointError(f"tensor {name!r} is missing", where=checkpoint.directory, hint=hint)
    return UnsupportedError(
        f"tensor {name!r} is quantised",
        where=parts[0].path,
        found=", ".join(f"{spec.name.removeprefix(stem)[:40]} in {spec.dtype}" for spec in parts[:4]),
        hint=_DEQUANTISE,
    )


def _check_layers(expected: int, checkpoint: Checkpoint) -> None:
    """Compare layer counts first: the most common lie of a config deserves its own sentence, and bounds the work."""
    numbers = {int(found[1]) for name in checkpoint.tensors if (found := re.match(r"model\.layers\.(\d{1,9})\.", name))}
    if len(numbers) != expected or (numbers and max(numbers) != expected - 1):
        raise CheckpointError(
            "the layers do not match config.json (num_hidden_layers)",
            where=checkpoint.directory,
            found=f"{len(numbers)} layers",
            expected=f"{expected}, numbered from 0",
            hint="the checkpoint is incomplete or its config is another model's",
        )


def _brief(value: Any) -> str:
    return ascii(value)[:60]


def _short(value: Any) -> Any:
    """The value itself where a message can hold it."""
    text = str(value)
    return value if len(text) <= 60 and text.isprintable() else _brief(value)
