"""Dense models without a target are refused with what stops the nearest mixtures, and with what can be done."""

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from upcycle.errors import UnsupportedError
from upcycle.families.config import find_pairs
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
