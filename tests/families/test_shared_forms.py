"""Every form of `--shared` in every target that has a shared expert: stock transformers computes the dense model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import run_convert
from tests.families.models import MODELS, save_model
from upcycle.errors import RequestError
from upcycle.families.pairs import PAIRS

FORMS: dict[str, dict[str, Any]] = {
    "zero": {"shared": "zero"}, "half": {"shared": "half"}, "dense": {"shared": "dense", "expert_width": 16},
}  # fmt: skip

NAMES = {
    pair.target.model_type: next(
        name
        for name, model in MODELS.items()
        if (model.model_type, model.becomes) == (pair.dense.model_type, pair.target.model_type)
        and model.dtype is torch.float32
    )
    for pair in PAIRS
    if pair.target.has_shared and "full" in pair.forms
}
"""Target -> one of its models."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", NAMES)
def test_each_form_computes_what_the_dense_model_does(target: str, form: str, tmp_path: Path) -> None:
    model = MODELS[NAMES[target]]
    dense, options = save_model(NAMES[target], model, tmp_path / "dense"), {**model.options, **FORMS[form]}
    if (target, form) == ("hunyuan_v1_moe", "dense"):
        with pytest.raises(RequestError, match="the shared expert of hunyuan_v1_moe is as wide as the others"):
            run_convert(dense, tmp_path / "moe", **options)
        return
    out = run_convert(dense, tmp_path / "moe", **options)
    ids_BT = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(3))
    ours, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert {name: keys for name, keys in info.items() if keys} == {}
    with torch.no_grad():
        theirs_BTV = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)(ids_BT).logits
        assert (ours(ids_BT).logits - theirs_BTV).abs().max() <= 1e-5 * theirs_BTV.abs().max()


def test_narrow_experts_that_do_not_add_up_to_the_shared_one(tmp_path: Path) -> None:
    dense = save_model("glm4_moe", MODELS[NAMES["glm4_moe"]], tmp_path / "dense")
    with pytest.raises(RequestError, match="found 20, expected a width that divides 48"):
        run_convert(dense, tmp_path / "moe", target="glm4_moe", shared="dense", expert_width=20)
