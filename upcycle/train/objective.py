"""What is minimised: the language-modelling loss and the losses of the routers, and what the routers did meanwhile.

Every loss is a mean over the whole batch of a step, however it is cut into micro-batches and spread over processes:
of the language modelling over its target tokens, of a router over sequences or tokens. The losses of all layers are
added, as in 2101.03961 and 2202.08906, so that what a coefficient does to a router does not depend on the depth.

Scopes of the balance loss: `sequence` takes each sequence as a group (2412.19437, section 2.1.2), `micro-batch` what
one process sees at a time, `global-batch` all tokens of a step (2501.11873). The importance loss, which is not linear
in what is seen, is always that of a sequence.

Layers may differ in their number of experts: those that are alike are computed together. A load `(L, E)` then has as
many columns as the largest layer has experts, zeros where a layer has fewer.

Shapes: L layers, B sequences, S tokens of a sequence, E experts, K top-k, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor
from torch.nn.functional import pad

from upcycle.moe.losses import balance_loss, expert_load, importance_loss, z_loss
from upcycle.moe.routing import SCORES, Routing
from upcycle.requests.train import Scope

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
    experts: tuple[int, ...]  # of each layer


class RouterObjective:
    """Computes the losses of all routers of a model at once; each layer by itself."""

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
        experts = tuple(routing.logits_TE.shape[-1] for routing in seen)
        parts, places = [], []
        for alike in _alike(seen):
            load = None if load_LE is None else load_LE[alike, : experts[alike[0]]]
            parts.append(self._measure([seen[layer] for layer in alike], batch, load))
            places += alike
        order = torch.tensor(places).argsort().to(parts[0][0].device)
        losses_3L = torch.cat([losses for losses, _, _ in parts], 1)[:, order]
        entropy_L = torch.cat([entropy for _, entropy, _ in parts])[order]
        load_LE = _padded([load for _, _, load in parts], max(experts))[order]
        sums = zip(ROUTER_LOSSES, losses_3L.sum(1), strict=True)
        total = torch.stack([getattr(self.coefficients, name) * value for name, value in sums]).sum()
        return total, RouterStatistics(losses_3L.detach(), entropy_L, load_LE, experts)

    def _measure(self, seen: Sequence[Routing], batch: int, load_LE: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses `(3, L)`, entropy `(L,)` and load `(L, E)` of layers that are alike."""
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
        load = expert_load(chosen_LBSK.flatten(1, 2), logits_LBSE.shape[-1])
        return losses_3L, _entropy(probabilities_LBSE), load


def load_of(seen: Sequence[Routing]) -> Tensor:
    """Return the load `(L, E)`, float32, of what the routers chose."""
    loads = [expert_load(routing.chosen_TK[None], routing.logits_TE.shape[-1]) for routing in seen]
    return _padded(loads, max(load.shape[-1] for load in loads))


def _alike(seen: Sequence[Routing]) -> list[list[int]]:
    """The layers by their numbers of experts and of choices, those of one kind together."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for layer, routing in enumerate(seen):
        kinds.setdefault((routing.logits_TE.shape[-1], routing.chosen_TK.shape[-1]), []).append(layer)
    return list(kinds.values())


def _padded(loads: Sequence[Tensor], experts: int) -> Tensor:
    return torch.cat([pad(load, (0, experts - load.shape[-1])) for load in loads])


def _by_sequence(tensors_TX: Sequence[Tensor], batch: int) -> Tensor:
    return torch.stack([tensor_TX.view(batch, -1, tensor_TX.shape[-1]) for tensor_TX in tensors_TX])


def _grouped(values_LBSX: Tensor, scope: Scope) -> Tensor:
    """The groups `(G, S, X)` of a scope, layer by layer."""
    return values_LBSX.flatten(0, 1) if scope == "sequence" else values_LBSX.flatten(1, 2)


@torch.no_grad()
def _entropy(probabilities_LBSE: Tensor) -> Tensor:
    most = log(max(probabilities_LBSE.shape[-1], 2))
    entropy_L: Tensor = torch.special.entr(probabilities_LBSE).sum(-1).mean((1, 2)) / most
    return entropy_L
