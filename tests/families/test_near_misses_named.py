"""Pairs that look alike and are not: dense models whose tensors fit a mixture that computes something else, or none."""

from pathlib import Path

import pytest

from tests import any_dense
from tests.conftest import run_convert
from tests.families.models import MODELS, save_model
from upcycle.errors import InputError, UnsupportedError
from upcycle.families.without_target import WITHOUT_TARGET

OTHER_TARGETS = {
    # the norms, multipliers, windows or pairs of rotated values are others, under the same names
    "smollm3": "mixtral",
    "ernie4_5": "mixtral",
    "granite": "mixtral",
    "glm": "mixtral",
    "olmo2": "olmoe",
    "llama": "llama4_text",
    "llama_bias": "phimoe",
    "qwen3": "minimax",
}
"""A model of `MODELS` -> a mixture that has a place for its tensors."""


@pytest.mark.parametrize("model_type", WITHOUT_TARGET)
def test_a_checkpoint_without_a_target(tmp_path: Path, model_type: str) -> None:
    """The weights of a stock class, not a config alone: nothing is written, and the reason is that of the table."""
    dense = any_dense.save_model(model_type, tmp_path / "dense")
    with pytest.raises(UnsupportedError) as caught:
        run_convert(dense, tmp_path / "out")
    assert WITHOUT_TARGET[model_type].why in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize("name", OTHER_TARGETS)
def test_a_target_that_the_model_does_not_have(tmp_path: Path, name: str) -> None:
    dense = save_model(name, MODELS[name], tmp_path / "dense")
    with pytest.raises(InputError, match=f"^{OTHER_TARGETS[name]} cannot be the mixture of such") as caught:
        run_convert(dense, tmp_path / "out", target=OTHER_TARGETS[name])
    assert MODELS[name].becomes in str(caught.value)
