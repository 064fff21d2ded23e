"""From a dense model's config to its mixture's: every field is carried over, kept, left out, or refused by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from upcycle.errors import RequestError, UnsupportedError
from upcycle.families import rope
from upcycle.families.pairs import DENSE, Form, Pair, pairs_of
from upcycle.families.rules import Carry, Each, Keep, Only, Reaches, Rule, Uniform
from upcycle.families.unread import concern, reads
from upcycle.families.wrappers import WRAPPERS
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
    "count": lambda value: type(value) is int and 0 <= value <= MAX_SIZE,
    "number": lambda value: _is_number(value),
    "number or null": lambda value: _is_number(value),
    "flag": lambda value: type(value) is bool,
    "known activation": lambda value: isinstance(value, str) and value in ACTIVATIONS,
    "head size for some layers": lambda value: isinstance(value, dict) and all(map(_is_head_size, value.items())),
    "any": lambda _value: True,
}
"""What a value of a field must be -> whether one is."""

MOE_FLAG = "enable_moe_block"
"""Config field of dense models and mixtures of one type: the others then say nothing where it is false."""

ALREADY_MOE = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")
"""Config fields by which a model that is a mixture of experts already is recognised."""

_MAX_PROBLEMS = 8  # told at once


def experts_named(config: Mapping[str, Any]) -> list[str]:
    """Return the fields by which a config is that of a mixture of experts; none for a dense model."""
    names = [name for name in ALREADY_MOE if config.get(name) not in (None, 0)]
    return names if config.get(MOE_FLAG, True) else []


def find_pairs(config: Mapping[str, Any], target: str | None = None, form: Form = "full") -> tuple[Pair, ...]:
    """Return the pairs of the dense model that a config names, in the order of preference; `target` leaves one.

    Raises UnsupportedError when there is none.
    """
    model_type = config.get("model_type")
    experts = experts_named(config)
    if experts:
        raise UnsupportedError(
            "the model is a mixture of experts already",
            found=f"{experts[0]} = {short(config[experts[0]])}, {short(model_type)}",
        )
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        raise _multimodal(model_type, inner)
    if not isinstance(model_type, str) or model_type not in DENSE:
        raise UnsupportedError(
            "no mixture of experts is known for this model",
            found=f"model_type {quoted(model_type)}",
            expected=f"one of {', '.join(DENSE)}",
        )
    pairs = pairs_of(model_type, target, form)
    architectures, model_class = config.get("architectures"), pairs[0].dense.model_class
    if architectures is not None and not _is_class(architectures, model_class):
        raise UnsupportedError(
            "the checkpoint holds another kind of model", found=short(architectures), expected=model_class
        )
    return pairs


def _multimodal(model_type: Any, inner: Mapping[str, Any]) -> UnsupportedError:
    """Return the error for a model of several kinds of input whose parts are not taken apart here."""
    text = inner.get("model_type")
    known = isinstance(text, str) and text in DENSE
    why = (
        "only plan, convert and verify see the language model in it"
        if model_type in WRAPPERS
        else "no mixture of experts is known for it as a whole"
    )
    return UnsupportedError(
        f"the model is multimodal, and {why}",
        found=f"model_type {quoted(model_type)}, whose language model is a {quoted(text)}",
        expected=None if known else f"a language model of the type {', '.join(DENSE)}",
        hint=f"the language model saved by itself, a {text}, can be taken" if known else None,
    )


def fitting(
    config: Mapping[str, Any], ignored_fields: Sequence[str] = (), target: str | None = None, form: Form = "full"
) -> tuple[Pair, dict[str, Any]]:
    """Return the first pair whose target can express a dense config, and the target's config.

    Raises UnsupportedError with what stops each target; see `find_pairs` and `target_config`.
    """
    problems: list[UnsupportedError] = []
    for pair in find_pairs(config, target, form):
        try:
            return pair, target_config(pair, config, ignored_fields)
        except UnsupportedError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    told = list(dict.fromkeys(map(str, problems)))
    raise UnsupportedError(
        f"no mixture of experts can express this model: {listed(told, _MAX_PROBLEMS, between='; or ', cut=800)}"
    )


def _is_class(architectures: Any, model_class: str) -> bool:
    """Whether `architectures` names the class alone, in any case: the first llamas say LLaMAForCausalLM."""
    names = architectures if isinstance(architectures, list) else []
    return [str(name).lower() for name in names] == [model_class.lower()]


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
        value = config.get(name, rule.default)
        if value is None and rule.kind == "number or null":  # the dense class takes null for its default
            value = rule.default
        result[rule.to or name] = value
        return None if value is None and rule.kind == "size" else _kind_problem(name, value, rule.kind)
    if isinstance(rule, Keep):
        if name in config:
            result[name] = value
        return None if value is None else _kind_problem(name, value, rule.kind)
    if isinstance(rule, Each) and name in config:
        result[name] = value
    refused = value is not None and not _is_allowed(value, rule, config)
    return f"{name} = {quoted(value)}: {rule.why}" if refused else None


def _is_allowed(value: Any, rule: Rule, config: Mapping[str, Any]) -> bool:
    if isinstance(rule, Only):
        return value in rule.values
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
