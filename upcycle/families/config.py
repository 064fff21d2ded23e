"""From a dense model's config to its mixture's: every field is carried over, kept, left out, or refused by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from upcycle.errors import RequestError, UnsupportedError
from upcycle.families import rope
from upcycle.families.pairs import Pair
from upcycle.families.rules import Carry, CarryIn, Each, Keep, Made, Means, Only, Reaches, Rule, Same, Uniform
from upcycle.families.unread import concern, reads
from upcycle.message import listed, quoted

MAX_SIZE = 2**31 - 1
"""Largest dimension that a config may claim."""

ACTIVATIONS = (
    "silu", "swish", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "relu6", "leaky_relu", "hardswish", "laplace", "linear", "mish",
    "sigmoid", "sqrtsoftplus", "tanh",
)  # fmt: skip
"""Of transformers (activations.py), those without parameters of their own."""

KINDS: Mapping[str, Callable[[Any], bool]] = {
    "size": lambda value: type(value) is int and 1 <= value <= MAX_SIZE,
    "size that is given": lambda value: KINDS["size"](value),
    "count": lambda value: type(value) is int and 0 <= value <= MAX_SIZE,
    "number": lambda value: _is_number(value),
    "number or null": lambda value: _is_number(value),
    "flag": lambda value: type(value) is bool,
    "known activation": lambda value: isinstance(value, str) and value in ACTIVATIONS,
    "head size for some layers": lambda value: isinstance(value, dict) and all(map(_is_head_size, value.items())),
    "any": lambda _value: True,
}
"""What a value of a field must be -> whether one is."""

_MAX_PROBLEMS = 8  # told at once


def target_config(pair: Pair, config: Mapping[str, Any], ignored_fields: Sequence[str] = ()) -> dict[str, Any]:
    """Return the target's config fields for a dense config; raise UnsupportedError listing every one without a place.

    `ignored_fields` names fields that the user declares to have no influence. Of the fields that no rule names, those
    without influence on the dense class (see `families.unread`) are kept, unless the target's class would read them.
    """
    result: dict[str, Any] = {"architectures": [pair.target.model_class], "model_type": pair.target.model_type}
    fields, config = pair.fields, pair.dense.as_read(config)
    problems = [problem for name, rule in fields.items() if (problem := _apply(name, rule, config, result))]
    ruled = _ruled(pair)
    for name in ignored_fields:
        if name in ruled or name not in config:
            reason = "is accounted for, and is not left out" if name in ruled else "is not in config.json"
            raise RequestError(f"--ignore-config {name}: the field {reason}", option="ignore_config")
    others = [name for name in unruled(pair, config) if name not in ignored_fields]
    concerns = {name: why for name in others if (why := concern(pair.dense.model_type, name, config))}
    problems += [f"{short(name)} = {quoted(config[name])}: {why}" for name, why in concerns.items()]
    if problems:
        raise UnsupportedError(
            f"config.json says what {pair.target.model_type} cannot express: "
            + listed(problems, _MAX_PROBLEMS, between="; ", cut=400),
            hint="if a field has no influence, --ignore-config NAME leaves it out" if concerns else None,
        )
    result.update({name: config[name] for name in others if not reads(pair.target.model_type, name)})
    _derive_heads(config, result)
    if pair.dense.rope:
        result.update(rope.rope_fields(config, pair.dense.rope, partial=pair.target.partial_rotary))
    result.update({name: rule.make(config, result) for name, rule in fields.items() if isinstance(rule, Made)})
    return result


def unruled(pair: Pair, config: Mapping[str, Any]) -> list[str]:
    """Return the fields of a dense config for which the pair has no rule."""
    ruled = _ruled(pair)
    return [name for name in config if name not in ruled]


def _ruled(pair: Pair) -> set[str]:
    return {*pair.fields, *(rope.FIELDS if pair.dense.rope else ()), "head_dim"}


def sizes_of(pair: Pair, config: Mapping[str, Any]) -> dict[str, int]:
    """Return what the letters of `families.parts` stand for in a target's config, and L, its layers."""
    own = {letter: size(config) for letter, size in pair.dense.sizes.items()}
    return own | {
        "V": config["vocab_size"],
        "D": config["hidden_size"],
        "F": config["intermediate_size"],
        "Q": config["num_attention_heads"] * config["head_dim"],
        "K": config["num_key_value_heads"] * config["head_dim"],
        "H": config["head_dim"],
        "L": config["num_hidden_layers"],
    }


def longest_sequence(config: Mapping[str, Any]) -> int | None:
    """Return the number of positions that a target's config promises; None where it names none."""
    found = config["max_position_embeddings"]
    return found if isinstance(found, int) and found else None


def _apply(name: str, rule: Rule, config: Mapping[str, Any], result: dict[str, Any]) -> str | None:
    """Add what `rule` makes of the field to `result`, or return what is wrong with it."""
    value = config.get(name)
    if isinstance(rule, Carry):
        return _carry(name, rule, config, result)
    if isinstance(rule, CarryIn):
        kinds = config.get(rule.field)
        elsewhere = isinstance(kinds, list) and rule.value not in kinds
        result[name] = value = None if elsewhere else config.get(name, rule.default)
        return None if value is None else _kind_problem(name, value, "size")
    if isinstance(rule, Same):
        result[name] = result[rule.other]
        return None if value in (None, result[name]) else f"{name} = {quoted(value)}: {rule.why}"
    if isinstance(rule, Means):
        result[name] = rule.values.get(str(rule.default if value is None else value))
    elif name in config and (isinstance(rule, Keep) or (isinstance(rule, Each) and rule.carried)):
        result[name] = value
    if isinstance(rule, Keep):
        return None if value is None else _kind_problem(name, value, rule.kind)
    wanted = value is not None or (isinstance(rule, Uniform) and not rule.absent)
    if isinstance(rule, Made) or not wanted or _is_allowed(value, rule, config):
        return None
    return f"{name} = {quoted(value)}: {rule.why}"


def _carry(name: str, rule: Carry, config: Mapping[str, Any], result: dict[str, Any]) -> str | None:
    """Write the field as the dense class reads it, or return what is wrong with it."""
    value = config.get(name, rule.default)
    if value is None and rule.kind == "number or null":  # the dense class takes null for its default
        value = rule.default
    if rule.given and not config.get(rule.given):
        value = None
    value = dict(rule.means).get(value, value) if isinstance(value, str) else value
    result[rule.to or name] = value
    return None if value is None and rule.kind == "size" else _kind_problem(name, value, rule.kind)


def _is_allowed(value: Any, rule: Rule, config: Mapping[str, Any]) -> bool:
    if isinstance(rule, Only):
        return value in rule.values or bool(rule.unless and rule.unless(config))
    if isinstance(rule, Means):
        return str(value) in rule.values
    if isinstance(rule, Uniform):
        return _is_uniform(value, rule)
    if isinstance(rule, Each):
        count = config.get("num_hidden_layers")
        return isinstance(value, list) and len(value) == count and all(item in rule.values for item in value)
    if isinstance(rule, Reaches):
        other = config.get(rule.other)
        return _is_number(value) and _is_number(other) and bool(value >= other)
    return True


def _is_uniform(value: Any, rule: Uniform) -> bool:
    if not isinstance(value, list):
        return False
    kinds = {str(item) for item in value}
    return len(kinds) <= 1 and kinds <= set(rule.values)


def _kind_problem(name: str, value: Any, kind: str) -> str | None:
    good = KINDS[kind](value)
    return None if good else f"{name} = {quoted(value)}: expected a {kind}"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def _is_head_size(entry: tuple[Any, Any]) -> bool:
    """Whether an entry of Gemma 4's `per_layer_config` is a layer's number and nothing but sizes of its heads."""
    layer, sizes = entry
    named = isinstance(sizes, dict) and sizes.keys() <= {"head_dim", "num_key_value_heads"}
    return layer.isdecimal() and named and all(KINDS["size"](size) for size in sizes.values())


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
    head_dim = result.get("head_dim", config.get("head_dim"))
    result["head_dim"] = result["hidden_size"] // heads if head_dim is None else head_dim
    problem = _kind_problem("head_dim", result["head_dim"], "size")
    if problem:
        raise UnsupportedError(f"config.json: {problem}")
    if heads % result["num_key_value_heads"]:
        raise UnsupportedError(
            "config.json: num_attention_heads is not a multiple of num_key_value_heads",
            found=f"{heads} and {result['num_key_value_heads']}",
        )


def short(value: Any) -> Any:
    """Return the value itself where a message can hold it, else as `quoted` gives it."""
    text = str(value)
    return value if len(text) <= 60 and text.isprintable() else quoted(value)
