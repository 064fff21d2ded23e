"""Finds what a dense model can become by its config, or says why it can become nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from upcycle.errors import UnsupportedError
from upcycle.families.config import short, target_config
from upcycle.families.dense.attachable import ATTACHABLE
from upcycle.families.pairs import DENSE, Form, Pair, pairs_of
from upcycle.families.without_target import WITHOUT_TARGET, encoder_decoder
from upcycle.families.wrappers import WRAPPERS
from upcycle.message import listed, quoted

MOE_FLAG = "enable_moe_block"
"""Config field of dense models and mixtures of one type: the others then say nothing where it is false."""

ALREADY_MOE = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")
"""Config fields by which a model that is a mixture of experts already is recognised."""

_MAX_TARGETS = 8  # told at once


def experts_named(config: Mapping[str, Any]) -> list[str]:
    """Return the fields by which a config is that of a mixture of experts; none for a dense model."""
    names = [name for name in ALREADY_MOE if config.get(name) not in (None, 0)]
    return names if config.get(MOE_FLAG, True) else []


def find_pairs(config: Mapping[str, Any], target: str | None = None, form: Form = "full") -> tuple[Pair, ...]:
    """Return the pairs of the dense model that a config names, in the order of preference; `target` leaves one.

    Raises UnsupportedError when there is none.
    """
    refuse_other_kinds(config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in DENSE:
        raise _no_pair(config)
    pairs = pairs_of(model_type, target, form)
    architectures, dense = config.get("architectures"), pairs[0].dense
    if architectures is not None and not _is_class(architectures, (dense.model_class, *dense.other_classes)):
        raise UnsupportedError(
            "the checkpoint holds another kind of model", found=short(architectures), expected=dense.model_class
        )
    return pairs


def _no_pair(config: Mapping[str, Any]) -> UnsupportedError:
    """The error for a dense model without a target, with the reason where it is known."""
    model_type, why = config.get("model_type"), encoder_decoder(config)
    found, what = f"model_type {quoted(model_type)}", "no mixture of experts is known for this model"
    known = WITHOUT_TARGET.get(model_type) if isinstance(model_type, str) else None
    if why is not None:
        return UnsupportedError(why, found=found)
    hint = "`upcycle attach` gives it adapter experts" if model_type in tuple(ATTACHABLE) else None
    if known is None:
        return UnsupportedError(what, found=found, expected=f"one of {', '.join(DENSE)}", hint=hint)
    return UnsupportedError(f"{what} ({known.title}): {known.why}", found=found, hint=hint)


def _multimodal(model_type: Any, inner: Mapping[str, Any]) -> UnsupportedError:
    """Return the error for a model of several kinds of input whose parts are not taken apart here."""
    text = inner.get("model_type")
    known = isinstance(text, str) and text in DENSE
    why = (
        "adapters are attached to language models by themselves alone"
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
    problems: dict[str, UnsupportedError] = {}  # by what they say, but for the target
    for pair in find_pairs(config, target, form):
        try:
            return pair, target_config(pair, config, ignored_fields)
        except UnsupportedError as error:
            problems.setdefault(str(error).replace(pair.target.model_type, ""), error)
    told = [str(error) for error in problems.values()]
    if len(told) == 1:
        raise next(iter(problems.values()))
    raise UnsupportedError(
        f"no mixture of experts can express this model: {listed(told, _MAX_TARGETS, between='; or ', cut=400)}"
    )


def _is_class(architectures: Any, classes: Sequence[str]) -> bool:
    """Whether `architectures` names one of the classes alone, in any case: the first llamas say LLaMAForCausalLM."""
    names = architectures if isinstance(architectures, list) else []
    return [str(name).lower() for name in names] in [[name.lower()] for name in classes]


def refuse_other_kinds(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for the config of a model that is a mixture of experts already, or multimodal."""
    experts = experts_named(config)
    if experts:
        raise UnsupportedError(
            "the model is a mixture of experts already",
            found=f"{experts[0]} = {short(config[experts[0]])}, {short(config.get('model_type'))}",
        )
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        raise _multimodal(config.get("model_type"), inner)
