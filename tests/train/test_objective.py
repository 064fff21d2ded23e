"""The routers' losses of a micro-batch, in every scope, and the figures that go with them."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from upcycle.moe.measures import cosine
from upcycle.moe.routing import Routing
from upcycle.train.objective import RouterObjective, load_of
from upcycle.train.step import Outcome
from upcycle.train.watch.metrics import describe, fetch
from upcycle.train.watch.speed import flops_per_token


def routing(first: list[int], experts: int = 2) -> Routing:
    """One layer, top-1, that is nearly certain: each token goes where it is told."""
    chosen = torch.tensor(first)[:, None]
    logits = torch.where(torch.arange(experts) == chosen, 50.0, 0.0).requires_grad_()
    return Routing(logits, torch.ones(len(first), 1), chosen)


def weights(balance: float, importance: float, z: float) -> dict[str, float]:
    return {"balance_loss": balance, "importance_loss": importance, "z_loss": z}


def measure(scope: Any, seen: list[Routing], batch: int, load: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    _, statistics = RouterObjective(weights(1, 0, 0), scope)(seen, batch, load)
    return statistics


# Two sequences of two tokens: the first goes to expert 0, the second to expert 1.
APART = [0, 0, 1, 1]


def test_scopes_by_hand() -> None:
    # sequence: in each f = P = (1, 0) or (0, 1), so 2 * 1 = 2. micro-batch: f = P = (1/2, 1/2), so 2 * (1/4 + 1/4) = 1.
    assert measure("sequence", [routing(APART)], 2)["balance_loss"].tolist() == pytest.approx([2.0])
    assert measure("micro-batch", [routing(APART)], 2)["balance_loss"].tolist() == pytest.approx([1.0])
    # global-batch: this micro-batch sends all to expert 0, the whole batch half: f = (1/2, 1/2), P = (1, 0): 2 * 1/2.
    half = torch.tensor([[0.5, 0.5]])
    assert measure("global-batch", [routing([0, 0])], 1, half)["balance_loss"].tolist() == pytest.approx([1.0])


def test_layers_are_not_pooled() -> None:
    # Each layer sends everything to one expert, another one each: pooled that would look even, and score 1.
    statistics = measure("micro-batch", [routing([0, 0]), routing([1, 1])], 1)
    assert statistics["balance_loss"].tolist() == pytest.approx([2.0, 2.0])
    assert statistics["load"].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_the_total_is_the_weighted_sum_over_layers() -> None:
    total, statistics = RouterObjective(weights(0.5, 0.25, 0.125))([routing([0, 0]), routing([0, 1])], 1)
    # balance: (2 + 1) / 2. importance: CV^2 of (1, 0) is 1, of (1/2, 1/2) 0. z: the square of ln(e^50 + 1).
    means = {name: statistics[name].mean().item() for name in weights(0, 0, 0)}
    assert means == pytest.approx(weights(1.5, 0.5, 2500.0))
    assert total.item() == pytest.approx(0.5 * 3 + 0.25 * 1 + 0.125 * 5000)


def test_entropy_is_relative_to_the_most_there_can_be() -> None:
    undecided = Routing(torch.zeros(4, 2), torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.int64))
    assert measure("sequence", [undecided], 1)["entropy"].tolist() == pytest.approx([1.0])
    assert measure("sequence", [routing(APART)], 1)["entropy"].tolist() == pytest.approx([0.0], abs=1e-6)


def test_load_of_all_layers() -> None:
    assert load_of([routing([0, 0, 0, 1]), routing([1, 1, 1, 1])]).tolist() == [[0.75, 0.25], [0.0, 1.0]]


def everything(experts: int) -> Routing:
    """One layer whose tokens use all experts, and prefer none."""
    weights = torch.full((4, experts), 1 / experts)
    return Routing(torch.zeros(4, experts, requires_grad=True), weights, torch.arange(experts).expand(4, -1))


def test_layers_may_differ_in_their_number_of_experts() -> None:
    # Layers of 2, 4, 2 experts and 3 that are all used; in the second the four tokens go to experts 0, 0, 2, 3.
    seen = [routing(APART), routing([0, 0, 2, 3], 4), routing([1, 1, 1, 1]), everything(3)]
    total, statistics = RouterObjective(weights(1, 0.5, 0), "micro-batch")(seen, 1)
    # balance: E sum f P: 1; 4 (1/4 + 1/16 + 1/16); 2; 1. importance, CV^2: 0; 4 * 3/8 - 1; 1; 0.
    assert statistics["balance_loss"].tolist() == pytest.approx([1, 1.5, 2, 1])
    assert statistics["importance_loss"].tolist() == pytest.approx([0, 0.5, 1, 0])
    assert statistics["z_loss"][3].item() == pytest.approx(math.log(3) ** 2)
    assert total.item() == pytest.approx(5.5 + 0.5 * 1.5)
    assert statistics["entropy"].tolist() == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert statistics["load"].tolist() == [
        pytest.approx([0.5, 0.5, 0, 0]), pytest.approx([0.5, 0, 0.25, 0.25]), pytest.approx([0, 1, 0, 0]),
        pytest.approx([1 / 3, 1 / 3, 1 / 3, 0]),
    ]  # fmt: skip
    assert torch.equal(load_of(seen), statistics["load"])
    total.backward()
    assert all(one.logits_TE.grad is not None for one in seen)
    # The load of a whole batch, in which the second layer is even: 4 (1/4) (1/2 + 1/4 + 1/4) and the others as before.
    whole_LE = statistics["load"].clone()
    whole_LE[1] = 0.25
    assert measure("global-batch", seen, 1, whole_LE)["balance_loss"].tolist() == pytest.approx([1, 1, 2, 1])


def test_every_layer_is_measured_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    seen = []
    for experts, top_k in ((2, 1), (4, 2), (8, 2), (4, 2), (2, 1), (4, 4)):
        logits = torch.randn(12, experts)
        weights, chosen = logits.softmax(-1).topk(top_k)
        seen.append(Routing(logits, weights, chosen))
    together = measure("sequence", seen, 3)
    for layer, one in enumerate(seen):
        alone = measure("sequence", [one], 3)
        assert all(torch.equal(together[name][layer], alone[name][0]) for name in alone if name != "load")
        experts = alone["load"].shape[1]
        assert torch.equal(together["load"][layer, :experts], alone["load"][0])
        assert not together["load"][layer, experts:].any()


def test_a_step_is_told_with_as_many_experts_as_each_layer_has() -> None:
    statistics = measure("micro-batch", [routing([0, 1, 2, 3], 4), routing(APART), everything(3)], 1)
    means = {"loss": torch.tensor(2.5), **statistics}
    outcome = Outcome(means, {"total": torch.tensor(1.0)}, torch.zeros(1), ((1, 4), (1, 2), (3, 3)))
    told = describe(7, fetch(outcome), {}, [0, 2, 5])
    assert (told["loss"], told["grad_norm"]) == (2.5, {"total": 1.0})
    assert [one["load"] for one in told["layers"]] == [[0.25] * 4, [0.5] * 2, pytest.approx([1 / 3] * 3)]
    assert [one["layer"] for one in told["layers"]] == [0, 2, 5]
    assert [one["max_over_mean"] for one in told["layers"]] == pytest.approx([1, 1, 1])
    assert [one["dead"] + one["cold"] for one in told["layers"]] == [0, 0, 0]


def test_cosine_of_experts_by_hand() -> None:
    experts = nn.Module()
    # Three experts of two weights each: e1 = e2 = (1, 0), e3 = (0, 2): cosines 1, 0, 0, their mean 1/3.
    experts.down_proj = nn.Parameter(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 2.0]]]))
    assert cosine(experts) == pytest.approx(1 / 3)
    experts.gate_up_proj = nn.Parameter(torch.zeros(3, 600, 2))  # more rows than are taken at a time
    assert cosine(experts) == pytest.approx(1 / 3)


def test_flops_by_hand() -> None:
    # 6 * 100 parameters, and 12 * 2 layers * 8 wide * 16 tokens of attention
    assert flops_per_token(100, 2, 8, 16) == 600 + 3072
    assert math.isclose(flops_per_token(7_000_000_000, 32, 4096, 4096) / 6 / 7e9, 1.153, rel_tol=1e-3)
