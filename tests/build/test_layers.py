"""`--layers`: which layers get experts, and what stops a choice; `--target` and `plan --targets`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_convert
from tests.families.models import MODELS, save_model
from upcycle.cli.show import json_of_draft
from upcycle.errors import RequestError, UnsupportedError
from upcycle.pipeline.stages import plan
from upcycle.requests import Convert, Plan


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen3 of four layers."""
    return save_model("qwen3", MODELS["qwen3_some_layers"], tmp_path_factory.mktemp("qwen") / "qwen")


@pytest.mark.parametrize(
    ("layers", "dense"),
    [
        ("all", []), ("every:1", []), ("every:2", [0, 2]), ("every:4", [0, 1, 2]), ("first:1", [1, 2, 3]),
        ("last:1", [0, 1, 2]), ("last:4", []), ("1-2", [0, 3]), ("3,0", [1, 2]), ("0-1,3", [2]), ("2", [0, 1, 3]),
    ],
)  # fmt: skip
def test_layers_that_stay_dense(qwen: Path, layers: str, dense: list[int]) -> None:
    drafted = plan(Plan(model=str(qwen), experts=4, layers=layers))
    assert drafted.plan.config["mlp_only_layers"] == dense
    assert drafted.plan.sparse_layers == 4 - len(dense)
    names = {write.name for write in drafted.plan.writes}
    assert {layer for layer in range(4) if f"model.layers.{layer}.mlp.gate_proj.weight" in names} == set(dense)
    assert {layer for layer in range(4) if f"model.layers.{layer}.mlp.gate.weight" not in names} == set(dense)
    assert drafted.account.paths == (6, 4 - len(dense))  # 4 choose 2


@pytest.mark.parametrize("layers", ["last:5", "first:5", "4", "0-4", "3-1", "every:5"])
def test_layers_that_the_model_does_not_have(qwen: Path, layers: str) -> None:
    with pytest.raises(RequestError) as caught:
        plan(Plan(model=str(qwen), layers=layers))
    assert (caught.value.found, caught.value.expected) == (layers, "some of 0 to 3")


@pytest.mark.parametrize("layers", ["", "some", "every:0", "last:", "1-", "1,,2", "-1", "1:2", "all,3"])
def test_words_that_name_no_layers(layers: str) -> None:
    with pytest.raises(RequestError, match="layers is out of range"):
        Convert(model="m", out="o", layers=layers)


def test_a_target_that_computes_every_layer_alike(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="mixtral cannot mix dense and sparse layers like this; found --layers 1"):
        run_convert(tiny, tmp_path / "out", layers="1")
    assert not (tmp_path / "out").exists()


def test_only_choices_that_are_no_default_are_in_the_receipt(qwen: Path, tmp_path: Path) -> None:
    def recorded(**options: Any) -> dict[str, Any]:
        out = run_convert(qwen, tmp_path / str(len(options)), **options)
        found: dict[str, Any] = json.loads((out / "upcycle.json").read_bytes())["recipe"]
        return found

    assert not {"target", "layers"} & set(recorded())
    chosen = recorded(target="qwen3_moe", layers="last:2")
    assert (chosen["target"], chosen["layers"]) == ("qwen3_moe", "last:2")


def test_a_target_of_another_model(tiny: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        plan(Plan(model=str(tiny), target="qwen3_moe"))
    assert caught.value.what == "qwen3_moe cannot be the mixture of such a model"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("of llama can be made: mixtral")


def test_every_target_is_listed_with_what_it_costs_or_what_stops_it(tiny: Path, tmp_path: Path) -> None:
    def told(model: Path) -> dict[str, Any]:
        request = Plan(model=str(model), targets=True)
        return {row["target"]: row for row in json_of_draft(request, plan(request))["targets"]}

    plain = told(tiny)
    assert plain["mixtral"]["exact"] is plain["granitemoe"]["exact"] is True
    assert plain["mixtral"]["parameters"] == plain["granitemoe"]["parameters"]
    assert plain["mixtral"]["readers"] == ["transformers", "llama.cpp", "vLLM"]
    biased = told(save_model("llama_bias", MODELS["llama_bias"], tmp_path / "biased"))
    assert "attention_bias = True: the target has no such bias" in biased["mixtral"]["problem"]
    assert biased["granitemoe"]["problem"] is None


def test_targets_that_cannot_have_the_layers_are_listed_with_the_reason(qwen: Path) -> None:
    """`every:2` is no tail of the layers: dots1 and glm4_moe cannot say it, and are not offered in its place."""
    request = Plan(model=str(qwen), experts=4, layers="every:2", targets=True)
    told = {row["target"]: row["problem"] for row in json_of_draft(request, plan(request))["targets"]}
    assert told["qwen3_moe"] is told["hy_v3"] is None
    assert "dots1 cannot mix dense and sparse layers like this" in told["dots1"]
    assert "--target qwen3_moe (any of them)" in told["dots1"]
    assert "glm4_moe (" not in told["dots1"]


def test_a_first_target_that_cannot_is_no_end_of_the_list(tiny: Path) -> None:
    request = Plan(model=str(tiny), shared="zero", targets=True)
    told = {row["target"]: row["problem"] for row in json_of_draft(request, plan(request))["targets"]}
    assert told["mixtral"].startswith("mixtral has no shared expert")
    assert told["granitemoeshared"] is None
