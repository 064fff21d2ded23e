"""Auxiliary losses: golden values, and transformers' own where it is right."""

from collections.abc import Callable
from math import log

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from upcycle.moe.groups import Groups
from upcycle.moe.losses import balance_loss, importance_loss, z_loss
from upcycle.moe.measures import entropy, load


def routed(logits: Tensor, top_k: int, mask: Tensor | None = None) -> Groups:
    """The likeliest experts of logits `(G, S, E)` are chosen."""
    probabilities = logits.softmax(-1)
    return Groups(logits, probabilities, probabilities.topk(top_k, dim=-1).indices, mask)


def told(probabilities: Tensor, chosen: Tensor) -> Groups:
    """Choices that need not be the likeliest."""
    return Groups(probabilities.log(), probabilities, chosen)


@pytest.fixture
def logits() -> Tensor:
    """3 sequences of 5 tokens, 4 experts."""
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


# -- golden values ----------------------------------------------------------------------------------------------------


def test_balance() -> None:
    # probabilities [3/4 1/4] and [1/2 1/2], mean [5/8 3/8]; both tokens chose expert 0, so the load is [1 0]
    # 2 * (1 * 5/8 + 0 * 3/8) = 5/4
    logits = torch.tensor([[[log(3), 0.0], [0.0, 0.0]]])
    assert balance_loss(told(logits.softmax(-1), torch.tensor([[[0], [0]]]))).tolist() == pytest.approx([1.25])


def test_balance_of_two_choices() -> None:
    # load: expert 0 twice, 1 and 2 once of four choices = [1/2 1/4 1/4]; mean probabilities [1/2 3/8 1/8]
    # 3 * (1/2 * 1/2 + 1/4 * 3/8 + 1/4 * 1/8) = 3 * (8 + 3 + 1) / 32 = 9/8
    probabilities = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]])
    assert balance_loss(told(probabilities, torch.tensor([[[0, 1], [0, 2]]]))).tolist() == [1.125]


def test_importance() -> None:
    # sums over the tokens [5/4 3/4], mean 1, variance (1/16 + 1/16) / 2 = 1/16
    probabilities = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])
    assert importance_loss(told(probabilities, torch.zeros(1, 2, 1))).tolist() == [0.0625]


def test_z() -> None:
    # log(3 + 1) = log 4 and log(1 + 1) = log 2: (4 log^2 2 + log^2 2) / 2 = 5/2 log^2 2
    logits = torch.tensor([[[log(3), 0.0], [0.0, 0.0]]])
    assert z_loss(routed(logits, 1)).tolist() == pytest.approx([2.5 * log(2) ** 2])


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (8, 2), (6, 3)])
def test_where_routing_is_even(experts: int, top_k: int) -> None:
    logits = torch.zeros(1, experts, experts)
    chosen = torch.stack([(torch.arange(experts) + shift) % experts for shift in range(top_k)], dim=-1)[None]
    groups = Groups(logits, logits.softmax(-1), chosen)
    assert balance_loss(groups).tolist() == pytest.approx([1.0])
    assert importance_loss(groups).tolist() == pytest.approx([0.0], abs=1e-7)
    assert z_loss(groups).tolist() == pytest.approx([log(experts) ** 2])


def test_collapse() -> None:
    """All tokens to one of eight experts with certainty: the most there can be."""
    logits = torch.zeros(1, 10, 8)
    logits[..., 3] = 50.0
    groups = routed(logits, 1)
    assert balance_loss(groups).tolist() == pytest.approx([8.0])
    assert importance_loss(groups).tolist() == pytest.approx([7.0])  # (1 - 1/8)^2 / 8 + 7/8 / 64, over 1/64


# -- groups and padding -----------------------------------------------------------------------------------------------


def test_a_mean_over_sequences_does_not_depend_on_the_batch(logits: Tensor) -> None:
    together = balance_loss(routed(logits, 2))
    alone = torch.cat([balance_loss(routed(one[None], 2)) for one in logits])
    assert torch.equal(together, alone)


def test_the_load_of_the_whole_batch_makes_pieces_exact(logits: Tensor) -> None:
    whole = routed(logits.flatten(0, 1)[None], 2)
    pieces = whole.split(3)
    assert torch.equal(pieces.logits_GSE, logits)
    expected = balance_loss(whole).item()
    assert balance_loss(pieces.with_load(load(whole))).mean().item() == pytest.approx(expected, rel=1e-6)
    assert balance_loss(pieces).mean().item() != pytest.approx(expected, rel=1e-3)


def test_padding_does_not_count(logits: Tensor) -> None:
    padded = torch.cat([logits, torch.full((3, 2, 4), torch.nan)], dim=1)
    mask = torch.tensor([[True] * 5 + [False] * 2] * 3)
    whole = routed(logits, 2)
    chosen_padded = torch.cat([whole.chosen_GSK, torch.zeros(3, 2, 2, dtype=torch.long)], dim=1)
    groups = Groups(padded, padded.softmax(-1), chosen_padded, mask)
    for function in (balance_loss, importance_loss, z_loss, entropy, load):
        assert torch.allclose(function(groups), function(whole))


def test_a_group_of_padding_alone(logits: Tensor) -> None:
    mask = torch.tensor([[True] * 5, [False] * 5, [True] * 5])
    for function in (balance_loss, importance_loss, z_loss):
        losses = function(routed(logits, 2, mask))
        assert losses[1] == 0
        assert losses.isfinite().all()


def test_the_load_is_a_share(logits: Tensor) -> None:
    groups = routed(logits, 2)
    assert load(groups).sum(-1).tolist() == pytest.approx([1.0] * 3)
    assert (load(groups)[0] * 10).tolist() == torch.bincount(groups.chosen_GSK[0].flatten(), minlength=4).tolist()


# -- gradients --------------------------------------------------------------------------------------------------------


def test_the_balance_loss_moves_tokens_away_from_the_busy_expert() -> None:
    """d/dz of E sum f P: the busiest expert's logits get a positive gradient, the idle ones' a negative one."""
    logits = torch.tensor([[[2.0, 0.0, 0.0]] * 4], requires_grad=True)
    balance_loss(told(logits.softmax(-1), torch.zeros(1, 4, 1, dtype=torch.long))).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[..., 0] > 0).all()
    assert (logits.grad[..., 1:] < 0).all()


@pytest.mark.parametrize("loss", [balance_loss, importance_loss, z_loss])
def test_gradients_are_right(loss: Callable[[Groups], Tensor]) -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen = routed(logits, 2).chosen_GSK
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])

    def of(z: Tensor) -> Tensor:
        return loss(Groups(z, z.softmax(-1), chosen, mask)).sum()

    z = logits.clone().requires_grad_()
    of(z).backward()
    assert z.grad is not None
    step = 1e-2  # the losses are float32
    for place in [(0, 0, 1), (1, 2, 3), (0, 2, 0)]:
        moved = torch.zeros_like(logits)
        moved[place] = step
        slope = (of(logits + moved) - of(logits - moved)) / (2 * step)
        assert z.grad[place].item() == pytest.approx(slope.item(), abs=2e-4)


# -- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_transformers_counts_every_choice_in_full(logits: Tensor, top_k: int) -> None:
    flat = logits.flatten(0, 1)
    theirs = load_balancing_loss_func((flat,), 4, top_k)
    ours = balance_loss(routed(flat[None], top_k))
    assert isinstance(theirs, Tensor)
    assert theirs.item() == pytest.approx(top_k * ours.item(), rel=1e-6)


def test_transformers_masks_padding_alike(logits: Tensor) -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    theirs = load_balancing_loss_func((logits.flatten(0, 1),), 4, 2, mask)
    ours = balance_loss(routed(logits.flatten(0, 1)[None], 2, mask.flatten()[None]))
    assert isinstance(theirs, Tensor)
    assert theirs.item() == pytest.approx(2 * ours.item(), rel=1e-6)


def test_transformers_pools_layers_and_sees_no_collapse() -> None:
    """Four layers, each with all its tokens on two experts of its own out of eight: pooled it is even, 2.0 for K = 2.

    By layer it is 8 * (1/2 * 1/2 + 1/2 * 1/2) = 4, or 8 as transformers counts.
    """
    layers = [torch.zeros(6, 8) for _ in range(4)]
    for number, layer in enumerate(layers):
        layer[:, 2 * number : 2 * number + 2] = 50.0
    theirs = load_balancing_loss_func(tuple(layers), 8, 2)
    assert isinstance(theirs, Tensor)
    assert theirs.item() == pytest.approx(2.0)
    for layer in layers:
        assert balance_loss(routed(layer[None], 2)).item() == pytest.approx(4.0)
