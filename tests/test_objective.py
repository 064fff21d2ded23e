"""The routers' losses of a micro-batch, in every scope, and the figures that go with them."""

import math

import pytest
import torch
from torch import nn

from upcycle.moe.routing import Routing
from upcycle.train.metrics import expert_cosine, flops_per_token
from upcycle.train.objective import Coefficients, RouterObjective, RouterStatistics, load_of


def routing(first: list[int]) -> Routing:
    """One layer of two experts, top-1, that is nearly certain: each token goes where it is told."""
    chosen = torch.tensor(first)[:, None]
    logits = torch.where(torch.arange(2) == chosen, 50.0, 0.0).requires_grad_()
    return Routing(logits, torch.ones(len(first), 1), chosen)


def measure(scope: str, seen: list[Routing], batch: int, load: torch.Tensor | None = None) -> RouterStatistics:
    coefficients = Coefficients(balance_loss=1.0, importance_loss=0.0, z_loss=0.0, scope=scope)  # type: ignore[arg-type]
    _, statistics = RouterObjective(coefficients)(seen, batch, load)
    return statistics


# Two sequences of two tokens: the first goes to expert 0, the second to expert 1.
APART = [0, 0, 1, 1]


def test_scopes_by_hand() -> None:
    # sequence: in each f = P = (1, 0) or (0, 1), so 2 * 1 = 2. micro-batch: f = P = (1/2, 1/2), so 2 * (1/4 + 1/4) = 1.
    assert measure("sequence", [routing(APART)], 2).losses_3L[0].tolist() == pytest.approx([2.0])
    assert measure("micro-batch", [routing(APART)], 2).losses_3L[0].tolist() == pytest.approx([1.0])
    # global-batch: this micro-batch sends all to expert 0, the whole batch half: f = (1/2, 1/2), P = (1, 0): 2 * 1/2.
    half = torch.tensor([[0.5, 0.5]])
    assert measure("global-batch", [routing([0, 0])], 1, half).losses_3L[0].tolist() == pytest.approx([1.0])


def test_layers_are_not_pooled() -> None:
    # Each layer sends everything to one expert, another one each: pooled that would look even, and score 1.
    statistics = measure("micro-batch", [routing([0, 0]), routing([1, 1])], 1)
    assert statistics.losses_3L[0].tolist() == pytest.approx([2.0, 2.0])
    assert statistics.load_LE.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_the_total_is_the_weighted_sum_over_layers() -> None:
    coefficients = Coefficients(balance_loss=0.5, importance_loss=0.25, z_loss=0.125)
    total, statistics = RouterObjective(coefficients)([routing([0, 0]), routing([0, 1])], 1)
    # balance: (2 + 1) / 2. importance: CV^2 of (1, 0) is 1, of (1/2, 1/2) 0. z: the square of ln(e^50 + 1).
    assert statistics.losses_3L.mean(1).tolist() == pytest.approx([1.5, 0.5, 2500.0])
    assert total.item() == pytest.approx(0.5 * 3 + 0.25 * 1 + 0.125 * 5000)


def test_entropy_is_relative_to_the_most_there_can_be() -> None:
    undecided = Routing(torch.zeros(4, 2), torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.int64))
    assert measure("sequence", [undecided], 1).entropy_L.tolist() == pytest.approx([1.0])
    assert measure("sequence", [routing(APART)], 1).entropy_L.tolist() == pytest.approx([0.0], abs=1e-6)


def test_load_of_all_layers() -> None:
    assert load_of([routing([0, 0, 0, 1]), routing([1, 1, 1, 1])]).tolist() == [[0.75, 0.25], [0.0, 1.0]]


def test_cosine_of_experts_by_hand() -> None:
    experts = nn.Module()
    # Three experts of two weights each: e1 = e2 = (1, 0), e3 = (0, 2): cosines 1, 0, 0, their mean 1/3.
    experts.down_proj = nn.Parameter(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 2.0]]]))
    assert expert_cosine(experts) == pytest.approx(1 / 3)
    experts.gate_up_proj = nn.Parameter(torch.zeros(3, 600, 2))  # more rows than are taken at a time
    assert expert_cosine(experts) == pytest.approx(1 / 3)


def test_flops_by_hand() -> None:
    # 6 * 100 parameters, and 12 * 2 layers * 8 wide * 16 tokens of attention
    assert flops_per_token(100, 2, 8, 16) == 600 + 3072
    assert math.isclose(flops_per_token(7_000_000_000, 32, 4096, 4096) / 6 / 7e9, 1.153, rel_tol=1e-3)
