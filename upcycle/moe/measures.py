"""What routers and experts do, in numbers: one function for each figure of `upcycle.figures`, of the same name.

The definitions are those of the field, and the only ones in upcycle:

- load counts every choice: an expert's share of the T * K choices (f_i of 2101.03961, eq. 5, for K = 1, and of
  2412.19437, eq. 18, over the number of routed experts), whatever weight the choice has.
- entropy is that of the probabilities which the router itself makes: a softmax, or sigmoid scores divided by their sum
  (2412.19437, eq. 19), and not a softmax of logits that the router never takes. It is that of each token, averaged,
  over ln(E); that of the mean load would call a router undecided that is certain about each token, of another expert.
- an expert is dead that gets less than 1% of an even share, cold below 5%: of 8 experts about .1% and .5% of the
  choices. None at all is what others call dead; a share says nearly the same of a small batch, and more of a large one.

Shapes: G groups, S tokens of a group, E experts, K top-k, P weights of an expert.
"""

from collections.abc import Iterator, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.figures import Source, bound_of, rows_of
from upcycle.moe.groups import Groups

ROWS = 256
"""Rows of each expert that are widened to float32 at a time."""


def measured(source: Source, of: Any) -> dict[str, Any]:
    """Return all figures of one source by name: `Groups` for tokens and text, a list for load, a module for weights."""
    return {row.name: globals()[row.name](of) for row in rows_of(source)}


# -- of tokens and texts ----------------------------------------------------------------------------------------------


def load(groups: Groups) -> Tensor:
    """Return the share `(G, E)`, float32, of the choices that each expert gets; sums to one, 1/E is even."""
    chosen_GX = groups.chosen_GSK.flatten(1)
    ones_GSK = torch.ones_like(groups.chosen_GSK, dtype=torch.float32)
    if groups.mask_GS is not None:
        ones_GSK = ones_GSK * groups.mask_GS[:, :, None]
    counts_GE = ones_GSK.new_zeros(len(chosen_GX), groups.logits_GSE.shape[-1])
    counts_GE.scatter_add_(1, chosen_GX, ones_GSK.flatten(1))
    return counts_GE / counts_GE.sum(-1, keepdim=True).clamp(min=1)


def entropy(groups: Groups) -> Tensor:
    """Return `-sum_i p_i ln(p_i) / ln(E)` `(G,)`, mean over tokens: 1 is undecided, 0 is certain."""
    most = log(max(groups.probabilities_GSE.shape[-1], 2))
    entropy_GS1 = torch.special.entr(groups.probabilities_GSE).sum(-1, keepdim=True)
    return groups.mean(entropy_GS1).squeeze(-1) / most


def logit_std(groups: Groups) -> Tensor:
    """Return the standard deviation `(G,)` of raw logits over all tokens and experts."""
    return groups.logits_GSE.flatten(1).std(1, correction=0)


# -- of a layer's load ------------------------------------------------------------------------------------------------


def max_over_min(load: Sequence[float]) -> float | None:
    """Return the busiest expert's load over the idlest one's; None where that gets nothing."""
    return max(load) / min(load) if min(load) > 0 else None


def max_over_mean(load: Sequence[float]) -> float:
    """Return the busiest expert's load over an even share; 2408.15664 calls this less one MaxVio."""
    return max(load) * len(load)


def dead(load: Sequence[float]) -> int:
    """Return how many experts get next to nothing."""
    return _below("dead", load)


def cold(load: Sequence[float]) -> int:
    """Return how many experts get little or nothing."""
    return _below("cold", load)


def _below(name: str, load: Sequence[float]) -> int:
    return sum(share * len(load) < bound_of(name) for share in load)


# -- of a layer's experts ---------------------------------------------------------------------------------------------


@torch.no_grad()
def cosine(experts: nn.Module) -> float:
    """Return the mean cosine of the weights of two experts of a layer: 1 for copies, 0 for independent ones.

    From the sum of the unit vectors u_i of E experts: `(|sum u_i|^2 - E) / (E (E - 1))`.
    """
    weights = [value for value in experts.parameters(recurse=False) if value.ndim > 2]
    count = len(weights[0])
    squares_E, length = torch.zeros(count, device=weights[0].device), torch.zeros((), device=weights[0].device)
    for part in _pieces(weights):
        squares_E += part.square().flatten(1).sum(1)
    inverse_E = squares_E.sqrt().clamp(min=1e-30).reciprocal()
    for part in _pieces(weights):
        length += torch.einsum("e,exy->xy", inverse_E, part).square().sum()
    return float((length - count) / (count * (count - 1))) if count > 1 else 1.0


def _pieces(weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield a few rows of every expert at a time, float32."""
    for weight in weights:
        for part in weight.split(ROWS, dim=1):
            yield part.float()
