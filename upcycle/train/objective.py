"""What is minimised: the language-modelling loss and the losses of the routers, and what the routers did meanwhile.

Every loss is a mean over the whole batch of a step, however it is cut into micro-batches and spread over processes:
of the language modelling over its target tokens, of a router over sequences or tokens. The losses of all layers are
added, as in 2101.03961 and 2202.08906, so that what a coefficient does to a router does not depend on the depth.

Scopes of the balance loss: `sequence` takes each sequence as a group (2412.19437, section 2.1.2), `micro-batch` what
one process sees at a time, `global-batch` all tokens of a step (2501.11873). The importance loss, which is not linear
in what is seen, is always that of a sequence.

Shapes: L layers, B sequences, S tokens of a sequence, E experts, K top-k, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from upcycle.moe.losses import balance_loss, expert_load, importance_loss, z_loss
from upcycle.moe.routing import SCORES, Routing
from upcycle.recipe.train import Scope

ROUTER_LOSSES = ("balance_loss", "importance_loss", "z_loss")


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Weights of the routers' losses, and the scope of the first."""

    balance_loss: float
    importance_loss: float
    z_loss: float
    scope: Scope = "sequence"


@dataclass(frozen=True, slots=True)
class RouterStatistics:
    """Per layer, without gradient: of a micro-batch, or their means over micro-batches and processes, of a step."""

    losses_3L: Tensor  # those of ROUTER_LOSSES, means over the micro-batch
    entropy_L: Tensor  # mean over tokens, divided by ln(E)
    load_LE: Tensor  # share of the choices that each expert gets


class RouterObjective:
    """Computes the losses of all routers of a model at once; layers must be alike in their number of experts."""

    def __init__(self, coefficients: Coefficients, scoring: str = "softmax") -> None:
        """`scoring` is one of `upcycle.moe.routing.SCORES`."""
        self.coefficients = coefficients
        self._scores = SCORES[scoring]

    @property
    def needs_load(self) -> bool:
        """Whether the load of the whole batch must be known."""
        return self.coefficients.scope == "global-batch"

    def __call__(
        self, seen: Sequence[Routing], batch: int, load_LE: Tensor | None = None
    ) -> tuple[Tensor, RouterStatistics]:
        """Return the weighted sum of the losses of a micro-batch of `batch` sequences, and the statistics.

        `load_LE` is the load of the step's whole batch, for the scope global-batch.
        """
        scope = self.coefficients.scope
        logits_LBSE = _by_sequence([routing.logits_TE for routing in seen], batch).float()
        chosen_LBSK = _by_sequence([routing.chosen_TK for routing in seen], batch)
        probabilities_LBSE = self._scores(logits_LBSE)
        load_GE = load_LE if scope == "global-batch" else None
        balance = balance_loss(_grouped(probabilities_LBSE, scope), _grouped(chosen_LBSK, scope), load_E=load_GE)
        layers = len(seen)
        losses_3L = torch.stack(
            [
                balance.view(layers, -1).mean(1),
                importance_loss(probabilities_LBSE.flatten(0, 1)).view(layers, -1).mean(1),
                z_loss(logits_LBSE.flatten(1, 2)),
            ]
        )
        sums = zip(ROUTER_LOSSES, losses_3L.sum(1), strict=True)
        total = torch.stack([getattr(self.coefficients, name) * value for name, value in sums]).sum()
        return total, _statistics(losses_3L, probabilities_LBSE, chosen_LBSK)


def load_of(seen: Sequence[Routing]) -> Tensor:
    """Return the load `(L, E)`, float32, of what the routers chose."""
    return expert_load(torch.stack([routing.chosen_TK for routing in seen]), seen[0].logits_TE.shape[-1])


def _by_sequence(tensors_TX: Sequence[Tensor], batch: int) -> Tensor:
    return torch.stack([tensor_TX.view(batch, -1, tensor_TX.shape[-1]) for tensor_TX in tensors_TX])


def _grouped(values_LBSX: Tensor, scope: Scope) -> Tensor:
    """The groups `(G, S, X)` of a scope, layer by layer."""
    return values_LBSX.flatten(0, 1) if scope == "sequence" else values_LBSX.flatten(1, 2)


@torch.no_grad()
def _statistics(losses_3L: Tensor, probabilities_LBSE: Tensor, chosen_LBSK: Tensor) -> RouterStatistics:
    experts = probabilities_LBSE.shape[-1]
    entropy_L = torch.special.entr(probabilities_LBSE).sum(-1).mean((1, 2)) / log(max(experts, 2))
    load_LE = expert_load(chosen_LBSK.flatten(1, 2), experts)
    return RouterStatistics(losses_3L.detach(), entropy_L, load_LE)
