"""Dense models without a target are refused with what stops the nearest mixtures, and with what can be done."""

from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from upcycle.errors import UnsupportedError
from upcycle.families.find import find_pairs
from upcycle.families.pairs import DENSE
from upcycle.families.without_target import WITHOUT_TARGET


@pytest.mark.parametrize("model_type", WITHOUT_TARGET)
def test_the_reason_and_what_can_be_done(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]().to_dict()
    with pytest.raises(UnsupportedError) as caught:
        find_pairs(config)
    row = WITHOUT_TARGET[model_type]
    assert str(caught.value) == (
        f"no mixture of experts is known for this model ({row.title}): {row.why}; "
        f"found model_type '{model_type}'; `upcycle attach` gives it adapter experts"
    )


def test_rows_are_language_models_without_a_pair() -> None:
    assert not WITHOUT_TARGET.keys() & DENSE.keys()
    assert WITHOUT_TARGET.keys() <= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()


DECODERS_ALONE = "is an encoder and a decoder, and upcycle works on decoders alone"
NO_GATE = "; Switch Transformers, T5's mixture, could not compute this one: its experts have no gate"


@pytest.mark.parametrize(
    ("model_type", "changed", "why"),
    [
        (
            "t5", {}, f"T5 {DECODERS_ALONE}; Switch Transformers can compute the same (docs/experiments.md), but "
            "upcycle does not write it",
        ),
        ("t5", {"feed_forward_proj": "gated-gelu"}, f"T5 {DECODERS_ALONE}{NO_GATE}"),
        ("t5", {"is_encoder_decoder": False, "feed_forward_proj": "gated-silu"}, f"T5 {DECODERS_ALONE}{NO_GATE}"),
        ("mt5", {}, f"mT5 {DECODERS_ALONE}{NO_GATE}"),
        ("mt5", {"feed_forward_proj": "relu"}, f"mT5 {DECODERS_ALONE}"),
        ("umt5", {}, f"UMT5 {DECODERS_ALONE}{NO_GATE}"),
        ("bart", {}, f"the model {DECODERS_ALONE}"),
    ],
)  # fmt: skip
def test_encoder_decoders(model_type: str, changed: dict[str, Any], why: str) -> None:
    """Told as such, without the advice to attach, which they cannot take; a field left out is its class's default."""
    config = CONFIG_MAPPING[model_type](**changed).to_dict()
    for left_out in ((), ("feed_forward_proj",) if "feed_forward_proj" not in changed else ()):
        with pytest.raises(UnsupportedError) as caught:
            find_pairs({name: value for name, value in config.items() if name not in left_out})
        assert str(caught.value) == f"{why}; found model_type '{model_type}'"


def test_switch_transformers_is_a_mixture_already() -> None:
    with pytest.raises(UnsupportedError, match="is a mixture of experts already; found num_experts = 8, switch_tr"):
        find_pairs(CONFIG_MAPPING["switch_transformers"]().to_dict())
