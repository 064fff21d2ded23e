"""`--shared`: where the dense FFN goes, and what does not go together; tests/families shows that all are exact."""

from pathlib import Path

import pytest
import torch

from tests.conftest import run_convert
from tests.convert.test_convert import tensors
from upcycle.errors import RequestError
from upcycle.pipeline.stages import plan
from upcycle.requests import Convert, Plan

GRANITE = {"target": "granitemoeshared"}
DENSE, SPARSE = "model.layers.1.mlp.", "model.layers.1.block_sparse_moe."
SHARED = "model.layers.1.shared_mlp."


def test_a_half_is_halved_in_the_shared_expert_and_in_the_others(tiny: Path, tmp_path: Path) -> None:
    dense, moe = tensors(tiny), tensors(run_convert(tiny, tmp_path / "moe", shared="half", **GRANITE))
    down = dense[DENSE + "down_proj.weight"]
    assert torch.equal(moe[SHARED + "output_linear.weight"], down / 2)
    for expert in moe[SPARSE + "output_linear.weight"]:
        assert torch.equal(expert, down / 2)


def test_narrow_experts_begin_as_other_neurons_each_and_add_nothing(tiny: Path, tmp_path: Path) -> None:
    """FFN of 48 neurons, experts of 20: 0-19, 20-39; 40-59 is too far and becomes 28-47; 60 mod 48 = 12: 12-31."""
    out = run_convert(tiny, tmp_path / "moe", shared="dense", expert_width=20, **GRANITE)
    dense, moe = tensors(tiny), tensors(out)
    gate, up = (dense[f"{DENSE}{name}_proj.weight"] for name in ("gate", "up"))
    stacked = moe[SPARSE + "input_linear.weight"]
    for expert, first in enumerate((0, 20, 28, 12)):
        assert torch.equal(stacked[expert], torch.cat([gate[first : first + 20], up[first : first + 20]]))
    assert not moe[SPARSE + "output_linear.weight"].any()
    assert torch.equal(moe[SHARED + "output_linear.weight"], dense[DENSE + "down_proj.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert_width": 8}, "expected --shared dense"),
        ({"shared": "dense"}, "expected --expert-width N beside it"),
        ({"shared": "half", "noise": 0.1}, "no --noise"),
    ],
)
def test_what_does_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Convert(model="m", out="o", **options)  # type: ignore[arg-type]


def test_a_target_without_a_shared_expert_and_experts_that_are_not_narrow(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        run_convert(tiny, tmp_path / "moe", shared="zero")
    assert caught.value.what == "mixtral has no shared expert"
    assert "--target granitemoeshared or --target qwen2_moe" in str(caught.value.hint)
    with pytest.raises(RequestError, match="found 48, expected 1 to 47"):
        run_convert(tiny, tmp_path / "moe", shared="dense", expert_width=48, **GRANITE)
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize("target", ["glm4_moe", "solar_open"])
def test_readers_that_stop_at_an_empty_shared_expert_are_named_where_it_is_empty(tiny: Path, target: str) -> None:
    said = {
        shared: any(
            "width zero" in limit
            for limit in plan(Plan(model=str(tiny), target=target, shared=shared)).plan.reader_limits
        )
        for shared in ("none", "zero")
    }
    assert said == {"none": True, "zero": False}
