"""Figures: every row has its function, and every word one value wherever it is said."""

import inspect
import json
from math import log
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.training import lines, run_train
from upcycle.convert.parity import router_figures
from upcycle.figures import FIGURES, PER_LAYER, ROUTER_LOSSES, bound_of, rows_of
from upcycle.moe import losses, measures
from upcycle.moe.loss import IGNORED, summed_cross_entropy
from upcycle.moe.measures import cold, dead, max_over_mean, max_over_min, measured
from upcycle.moe.routing import Routing, sigmoid_scores, softmax_scores
from upcycle.requests import Train
from upcycle.train.objective import RouterObjective, coefficients_of
from upcycle.train.packing import pack, unpack


def functions(module: ModuleType) -> set[str]:
    """The public functions that a module defines."""
    made = inspect.getmembers(module, lambda one: inspect.isfunction(inspect.unwrap(one)))
    return {name for name, one in made if inspect.unwrap(one).__module__ == module.__name__ and name[0] != "_"}


# -- rows and functions -----------------------------------------------------------------------------------------------


def test_every_row_has_its_function_and_every_function_its_row() -> None:
    assert functions(losses) == set(ROUTER_LOSSES)
    rows = {row.name for row in rows_of("tokens", "text", "load", "weights")}
    assert functions(measures) - {"measured"} == rows


def test_every_router_loss_has_an_option() -> None:
    request = Train(model="m", out="o", data=("d",), balance_coef=1.0, z_coef=2.0, importance_coef=3.0)
    found = coefficients_of(request)
    assert found.keys() == set(ROUTER_LOSSES)
    assert (found["balance_loss"], found["z_loss"], found["importance_loss"]) == (1.0, 2.0, 3.0)


def test_every_row_says_what_it_is() -> None:
    assert all(row.meaning for row in FIGURES.values())
    assert all(row.unit for row in FIGURES.values() if row.title)
    assert all(f"{1 if row.added else 1.5:{row.form}}" for row in PER_LAYER)


def test_all_that_is_told_of_a_step_has_a_row(moe: Path, text: Path, tmp_path: Path) -> None:
    (line,) = lines(run_train(moe, tmp_path / "out", text, max_steps=1, eval_split=0.1))
    assert set(line) - {"step", "layers"} <= set(FIGURES)
    told = {"layer", *(row.name for row in rows_of("tokens", "load", "weights", "loss"))}
    assert all(set(layer) == told for layer in line["layers"])


# -- one value --------------------------------------------------------------------------------------------------------


def sigmoid_router() -> Routing:
    """Two tokens, three experts, the likeliest two chosen with weights as a sigmoid router gives them."""
    logits_TE = torch.tensor([[0.0, log(3), log(1 / 3)], [log(3), log(3), 0.0]])
    weights_TK, chosen_TK = logits_TE.sigmoid().topk(2)
    return Routing(logits_TE, weights_TK, chosen_TK)


def test_entropy_is_that_of_the_routers_own_probabilities() -> None:
    # sigmoids 1/2 3/4 1/4, which sum to 3/2: 1/3 1/2 1/6; and 3/4 3/4 1/2, which sum to 2: 3/8 3/8 1/4
    first = log(3) / 3 + log(2) / 2 + log(6) / 6
    second = 2 * 3 / 8 * log(8 / 3) + log(4) / 4
    expected = (first + second) / 2 / log(3)
    router = sigmoid_router()
    coefficients = dict.fromkeys(ROUTER_LOSSES, 0.0)
    _, trained = RouterObjective(coefficients, "micro-batch", "sigmoid")([router], 1)
    assert trained["entropy"].tolist() == pytest.approx([expected])
    assert router_figures(router, "sigmoid")["entropy"] == pytest.approx(expected)
    # a softmax of the same logits, which this router never takes, is another: 1/(1+3+1/3) ...
    other = RouterObjective(coefficients, "micro-batch", "softmax")([router], 1)[1]["entropy"]
    assert abs(float(other) - expected) > 0.1


@pytest.mark.parametrize(("scoring", "scores"), [("softmax", softmax_scores), ("sigmoid", sigmoid_scores)])
def test_training_and_verify_say_the_same_of_a_router(scoring: str, scores: object) -> None:
    logits_TE = 2 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    assert callable(scores)
    weights_TK, chosen_TK = scores(logits_TE).topk(2)
    router = Routing(logits_TE, weights_TK, chosen_TK)
    _, trained = RouterObjective(dict.fromkeys(ROUTER_LOSSES, 0.0), "micro-batch", scoring)([router], 1)
    verified = router_figures(router, scoring)
    assert verified["entropy"] == trained["entropy"].item()
    assert verified["load"] == trained["load"][0].tolist()
    assert {name: verified[name] for name in measured("load", [1.0])} == measured("load", verified["load"])
    assert verified["logit_std"] == pytest.approx(float(logits_TE.std(correction=0)), rel=1e-6)


def test_figures_of_a_load() -> None:
    # of four experts an even share is 1/4: 1% of it is .0025, 5% are .0125
    load = [0.0, 0.0024, 0.0124, 0.9852]
    assert (dead(load), cold(load)) == (2, 3)
    assert dead([0.0025, 0.9975, 0.0, 0.0]) == 2
    assert cold([0.0125, 0.9875, 0.0, 0.0]) == 2
    assert max_over_mean(load) == pytest.approx(3.9408)
    assert max_over_min(load) is None
    assert max_over_min([0.2, 0.5, 0.3]) == pytest.approx(2.5)
    assert (dead([1.0]), cold([1.0]), max_over_mean([1.0]), max_over_min([1.0])) == (0, 0, 1.0, 1.0)


def test_bounds() -> None:
    assert (bound_of("dead"), bound_of("cold"), bound_of("cosine")) == (0.01, 0.05, 1 - 1e-6)


# -- the cross entropy ------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand() -> None:
    # ln(1 + 3) - ln 3, and ln(1 + 1) - 0; the third position has no target
    logits_TV = torch.tensor([[0.0, log(3)], [0.0, 0.0], [9.0, 1.0]])
    found = summed_cross_entropy(logits_TV, torch.tensor([1, 0, IGNORED]))
    assert found.item() == pytest.approx(log(4 / 3) + log(2), rel=1e-6)
    assert summed_cross_entropy(logits_TV, torch.full((3,), IGNORED)) == 0


def test_cross_entropy_is_summed_in_float64() -> None:
    logits_TV = torch.randn(5000, 11, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets_T = torch.arange(5000) % 11
    exact = cross_entropy(logits_TV.double(), targets_T, reduction="sum")
    found = summed_cross_entropy(logits_TV, targets_T)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(exact.item(), rel=1e-9)


# -- packing ----------------------------------------------------------------------------------------------------------


def test_packed_tensors_come_in_the_order_of_their_names() -> None:
    named = {"b": torch.tensor([[3.0, 4.0], [5.0, 6.0]]), "a": torch.tensor(1), "c": torch.tensor([7.5])}
    flat = pack(named)
    assert (flat.dtype, flat.tolist()) == (torch.float64, [1, 3, 4, 5, 6, 7.5])
    found = unpack(2 * flat, named)
    assert {name: value.tolist() for name, value in found.items()} == {"a": 2, "b": [[6, 8], [10, 12]], "c": [15]}


def test_the_figures_of_a_router_are_json() -> None:
    # both tokens chose experts 0 and 1, so each got half of the choices and expert 2 none
    told = json.loads(json.dumps(router_figures(sigmoid_router(), "sigmoid")))
    assert (told["load"], told["dead"], told["max_over_min"]) == ([0.5, 0.5, 0.0], 1, None)
