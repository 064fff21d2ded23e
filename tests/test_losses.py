"""Auxiliary losses: golden values, and transformers' own where it is right."""

from math import log

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from upcycle.moe.losses import balance_loss, expert_load, importance_loss, z_loss


def routed(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Probabilities and the likeliest experts of logits `(G, S, E)`."""
    probabilities = logits.softmax(-1)
    return probabilities, probabilities.topk(top_k, dim=-1).indices


@pytest.fixture
def logits() -> Tensor:
    """3 sequences of 5 tokens, 4 experts."""
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


# -- golden values ----------------------------------------------------------------------------------------------------


def test_balance() -> None:
    # probabilities [3/4 1/4] and [1/2 1/2], mean [5/8 3/8]; both tokens chose expert 0, so the load is [1 0]
    # 2 * (1 * 5/8 + 0 * 3/8) = 5/4
    logits = torch.tensor([[[log(3), 0.0], [0.0, 0.0]]])
    assert balance_loss(logits.softmax(-1), torch.tensor([[[0], [0]]])).tolist() == pytest.approx([1.25])


def test_balance_of_two_choices() -> None:
    # load: expert 0 twice, 1 and 2 once of four choices = [1/2 1/4 1/4]; mean probabilities [1/2 3/8 1/8]
    # 3 * (1/2 * 1/2 + 1/4 * 3/8 + 1/4 * 1/8) = 3 * (8 + 3 + 1) / 32 = 9/8
    probabilities = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]])
    assert balance_loss(probabilities, torch.tensor([[[0, 1], [0, 2]]])).tolist() == [1.125]


def test_importance() -> None:
    # sums over the tokens [5/4 3/4], mean 1, variance (1/16 + 1/16) / 2 = 1/16
    probabilities = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])
    assert importance_loss(probabilities).tolist() == [0.0625]


def test_z() -> None:
    # log(3 + 1) = log 4 and log(1 + 1) = log 2: (4 log^2 2 + log^2 2) / 2 = 5/2 log^2 2
    logits = torch.tensor([[[log(3), 0.0], [0.0, 0.0]]])
    assert z_loss(logits).tolist() == pytest.approx([2.5 * log(2) ** 2])


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (8, 2), (6, 3)])
def test_where_routing_is_even(experts: int, top_k: int) -> None:
    logits = torch.zeros(1, experts, experts)
    chosen = torch.stack([(torch.arange(experts) + shift) % experts for shift in range(top_k)], dim=-1)[None]
    assert balance_loss(logits.softmax(-1), chosen).tolist() == pytest.approx([1.0])
    assert importance_loss(logits.softmax(-1)).tolist() == pytest.approx([0.0], abs=1e-7)
    assert z_loss(logits).tolist() == pytest.approx([log(experts) ** 2])


def test_collapse() -> None:
    """All tokens to one of eight experts with certainty: the most there can be."""
    logits = torch.zeros(1, 10, 8)
    logits[..., 3] = 50.0
    probabilities, chosen = routed(logits, 1)
    assert balance_loss(probabilities, chosen).tolist() == pytest.approx([8.0])
    assert importance_loss(probabilities).tolist() == pytest.approx([7.0])  # (1 - 1/8)^2 / 8 + 7/8 / 64, over 1/64


# -- groups and padding -----------------------------------------------------------------------------------------------


def test_a_mean_over_sequences_does_not_depend_on_the_batch(logits: Tensor) -> None:
    probabilities, chosen = routed(logits, 2)
    together = balance_loss(probabilities, chosen)
    alone = torch.cat([balance_loss(p[None], c[None]) for p, c in zip(probabilities, chosen, strict=True)])
    assert torch.equal(together, alone)


def test_the_load_of_the_whole_batch_makes_pieces_exact(logits: Tensor) -> None:
    probabilities, chosen = routed(logits, 2)
    whole = balance_loss(probabilities.flatten(0, 1)[None], chosen.flatten(0, 1)[None])
    load = expert_load(chosen.flatten(0, 1)[None], 4)[0]
    pieces = balance_loss(probabilities, chosen, load_E=load)
    assert pieces.mean().item() == pytest.approx(whole.item(), rel=1e-6)
    assert balance_loss(probabilities, chosen).mean().item() != pytest.approx(whole.item(), rel=1e-3)


def test_padding_does_not_count(logits: Tensor) -> None:
    padded = torch.cat([logits, torch.full((3, 2, 4), torch.nan)], dim=1)
    mask = torch.tensor([[True] * 5 + [False] * 2] * 3)
    _, chosen = routed(logits, 2)
    chosen_padded = torch.cat([chosen, torch.zeros(3, 2, 2, dtype=torch.long)], dim=1)
    p, q = logits.softmax(-1), padded.softmax(-1)
    assert torch.allclose(balance_loss(q, chosen_padded, mask), balance_loss(p, chosen))
    assert torch.allclose(importance_loss(q, mask), importance_loss(p))
    assert torch.allclose(z_loss(padded, mask), z_loss(logits))


def test_a_group_of_padding_alone(logits: Tensor) -> None:
    mask = torch.tensor([[True] * 5, [False] * 5, [True] * 5])
    probabilities, chosen = routed(logits, 2)
    for losses in (
        balance_loss(probabilities, chosen, mask),
        importance_loss(probabilities, mask),
        z_loss(logits, mask),
    ):
        assert losses[1] == 0
        assert losses.isfinite().all()


def test_the_load_is_a_share(logits: Tensor) -> None:
    _, chosen = routed(logits, 2)
    load = expert_load(chosen, 4)
    assert load.sum(-1).tolist() == pytest.approx([1.0] * 3)
    assert (load[0] * 10).tolist() == torch.bincount(chosen[0].flatten(), minlength=4).tolist()


# -- gradients --------------------------------------------------------------------------------------------------------


def test_the_balance_loss_moves_tokens_away_from_the_busy_expert() -> None:
    """d/dz of E sum f P: the busiest expert's logits get a positive gradient, the idle ones' a negative one."""
    logits = torch.tensor([[[2.0, 0.0, 0.0]] * 4], requires_grad=True)
    balance_loss(logits.softmax(-1), torch.zeros(1, 4, 1, dtype=torch.long)).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[..., 0] > 0).all()
    assert (logits.grad[..., 1:] < 0).all()


@pytest.mark.parametrize("loss", ["balance", "importance", "z"])
def test_gradients_are_right(loss: str) -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, chosen = routed(logits, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    functions = {
        "balance": lambda z: balance_loss(z.softmax(-1), chosen, mask),
        "importance": lambda z: importance_loss(z.softmax(-1), mask),
        "z": lambda z: z_loss(z, mask),
    }
    z = logits.clone().requires_grad_()
    functions[loss](z).sum().backward()
    assert z.grad is not None
    step = 1e-2  # the losses are float32
    for place in [(0, 0, 1), (1, 2, 3), (0, 2, 0)]:
        moved = torch.zeros_like(logits)
        moved[place] = step
        slope = (functions[loss](logits + moved) - functions[loss](logits - moved)).sum() / (2 * step)
        assert z.grad[place].item() == pytest.approx(slope.item(), abs=2e-4)


# -- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_transformers_counts_every_choice_in_full(logits: Tensor, top_k: int) -> None:
    flat = logits.flatten(0, 1)
    theirs = load_balancing_loss_func((flat,), 4, top_k)
    ours = balance_loss(*routed(flat[None], top_k))
    assert isinstance(theirs, Tensor)
    assert theirs.item() == pytest.approx(top_k * ours.item(), rel=1e-6)


def test_transformers_masks_padding_alike(logits: Tensor) -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    theirs = load_balancing_loss_func((logits.flatten(0, 1),), 4, 2, mask)
    ours = balance_loss(*routed(logits.flatten(0, 1)[None], 2), mask.flatten()[None])
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
        assert balance_loss(*routed(layer[None], 2)).item() == pytest.approx(4.0)
