"""Judges config fields that no rule names: whether the stock class reads them, and whether they matter all the same.

What a model computes is what transformers' class of it computes, so a field that this class does not read has no
influence. Some are refused nevertheless: the weights were made for other code, which does read them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from upcycle.checkpoint.strict_json import read_object

FIELDS_READ = Path(__file__).parent / "fields_read.json"
"""Model type -> the config fields that its classes read; tests/families/read_fields.py makes it of transformers."""

UNKNOWN = "not known to have a counterpart"
"""What is said of a field that the dense class reads, or may read, and that no rule names."""

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")  # the name of a field, where no one plays tricks
_NOTHING: tuple[Any, ...] = (None, False, 0, "", "none", [], {})
_ONE = (None, False, 1)


@dataclass(frozen=True, slots=True)
class Concern:
    """A kind of fields that matter wherever they are read."""

    names: str  # a regular expression, found anywhere in the name
    harmless: tuple[Any, ...]  # values that say what is so anyway
    why: str


CONCERNS = (
    Concern(r"quant|gptq|awq|bitsandbytes|compress|(^|_)bits$|load_in_\dbit", _NOTHING, "the weights may be quantised"),
    Concern(r"^auto_map$|custom_code|trust_remote_code", _NOTHING, "the model needs code of its own"),
    Concern(r"(^|_)no_bias(_|$)", (None, True), "transformers adds no such bias"),
    Concern(r"(^|_)bias(es)?(_|$)", _NOTHING, "transformers adds no such bias"),
    Concern(r"expert|(^|_)moe(_|$)|router|topk", _NOTHING, "names a mixture of experts"),
    Concern(r"^(use_)?(rope|rotary)(_emb\w*)?$", (None, True), "transformers rotates positions"),
    Concern(r"^position(al)?_(embedding|encoding)_type$", (None, "rope", "rotary"), "transformers rotates positions"),
    Concern(r"alibi|rope|rotary|yarn|ntk|relative_|position_bias|xpos", _ONE, "changes how positions are encoded"),
    Concern(r"soft_?cap|logits?_cap|clip_qkv|qkv_clip", _NOTHING, "transformers does not limit these values"),
    Concern(
        r"multiplier|(^|_)mup(_|$)|(^|_)scal(e|ing|ar)(_|$)|dim_model_base|temperature_tuning",
        _ONE,
        "transformers does not scale these values",
    ),
    Concern(r"parallel_(attn|attention|residual|block)", _NOTHING, "transformers computes attention before the FFN"),
    Concern(r"nextn|(^|_)mtp(_|$)|medusa|eagle", _NOTHING, "transformers predicts the next token only"),
    Concern(
        r"(^|_)window(_size)?s?$|sliding|(^|_)sinks?(_|$)|sparse|linear_att|mamba|(^|_)ssm|(^|_)conv(_|$)|hybrid",
        _NOTHING,
        "changes what a token attends to",
    ),
    Concern(
        r"norm(alization)?_type$", (None, "rms", "rmsnorm", "rms_norm", "RMSNorm"), "transformers computes an RMS norm"
    ),
    Concern(
        r"(qk|query_key|(^|_)[qk])_(layer)?norm|(post|sandwich|sub)_(layer)?norm",
        _NOTHING,
        "transformers computes no such norm",
    ),
    Concern(
        r"(^|_)lora|latent|(^|_)mla(_|$)|shared?_|(^|_)share|early_exit|skip_layer",
        _NOTHING,
        "changes what a layer computes",
    ),
    Concern(r"vision|audio|image|video|multimodal|(^|_)mm_", _NOTHING, "the model reads more than text"),
)
"""Fields that other programs, or a model's own code, read though the stock dense class does not."""

_ACTIVATION = re.compile(r"^(ffn_|mlp_|hidden_)?act(ivation)?(_fn|_function|_func)?$")


def reads(model_type: str, name: str) -> bool:
    """Whether transformers' classes of a model type read a config field; True where that is not known."""
    by_all, by_model = _fields_read()
    return model_type not in by_model or name in by_all or name in by_model[model_type]


def concern(model_type: str, name: str, config: Mapping[str, Any]) -> str | None:
    """Return why a field without a rule is refused; None where it changes nothing that the dense class computes."""
    value = config[name]
    if not _PLAIN.fullmatch(name) or reads(model_type, name):
        return UNKNOWN
    if _ACTIVATION.fullmatch(name):
        same = value in (None, config.get("hidden_act", "silu"))
        return None if same else "another activation than hidden_act, which transformers reads"
    found = next((one for one in CONCERNS if re.search(one.names, name)), None)
    return None if found is None or _is_one_of(value, found.harmless) else found.why


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value is among others, where a flag is no number."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


@cache
def _fields_read() -> tuple[frozenset[str], Mapping[str, frozenset[str]]]:
    document = read_object(FIELDS_READ)
    return frozenset(document["all"]), {name: frozenset(fields) for name, fields in document["models"].items()}
