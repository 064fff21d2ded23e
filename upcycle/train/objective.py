"""Computes the router losses that training adds to the cross entropy, and figures of what the routers decided.

Every loss is a mean over the whole batch of a step, however it is cut into micro-batches and spread over processes.
The losses of all layers are added, as in 2101.03961 and 2202.08906, so that what a coefficient does to a router does
not depend on the depth.

Scopes of the balance loss: `sequence` takes each sequence as a group (2412.19437, section 2.1.2), `micro-batch` what
one process sees at a time, `global-batch` all tokens of a step (2501.11873). The importance loss, which is not linear
in what is seen, is always that of a sequence.

Layers may differ in their number of experts: those that are alike are computed together. A load `(L, E)` then has as
many columns as the largest layer has experts, zeros where a layer has fewer.

Shapes: L layers, G groups, E experts, K top-k.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from upcycle.figures import FIGURES, ROUTER_LOSSES
from upcycle.moe import losses
from upcycle.moe.groups import Groups
from upcycle.moe.measures import load, measured
from upcycle.moe.routing import SCORES, Routing
from upcycle.requests.train import Scope, Train


def coefficients_of(request: Train) -> dict[str, float]:
    """Return the weight of each router loss: that of `z_loss` is the option `z_coef`."""
    return {name: getattr(request, f"{name.removesuffix('_loss')}_coef") for name in ROUTER_LOSSES}


class RouterObjective:
    """Computes the losses and figures of all routers of a model at once; each layer by itself."""

    def __init__(self, coefficients: Mapping[str, float], scope: Scope = "sequence", scoring: str = "softmax") -> None:
        """Weigh router losses by `coefficients`; `scoring`, of `upcycle.moe.routing.SCORES`, is the routers' own."""
        self.coefficients, self.scope = dict(coefficients), scope
        self._scores = SCORES[scoring]

    @property
    def needs_load(self) -> bool:
        """Whether the load of the whole batch must be known before the losses can be computed."""
        return self.scope == "global-batch"

    def __call__(
        self, seen: Sequence[Routing], batch: int, load_LE: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the losses of a micro-batch of `batch` sequences, and figures by their names.

        Losses are `(L,)`, with their gradient in the sum only; so are the figures of tokens, but for the load `(L, E)`.
        `load_LE` is the load of the step's whole batch, for the scope global-batch.
        """
        parts, places = [], []
        for alike in _alike(seen):
            layers = Groups.of([seen[layer] for layer in alike], self._scores)
            experts = layers.logits_GSE.shape[-1]
            whole_GE = None if load_LE is None or not self.needs_load else load_LE[alike, :experts]
            with torch.no_grad():
                figures = measured("tokens", layers)
            parts.append({**self._losses(layers, batch, whole_GE), **figures})
            places += alike
        order_L = torch.tensor(places).argsort().to(seen[0].logits_TE.device)
        named = {name: _joined([part[name] for part in parts])[order_L] for name in parts[0]}
        total = torch.stack([self.coefficients[name] * named[name].sum() for name in ROUTER_LOSSES]).sum()
        return total, {name: value.detach() for name, value in named.items()}

    def _losses(self, layers: Groups, batch: int, load_GE: Tensor | None) -> dict[str, Tensor]:
        """Return each loss `(L,)` of layers that are alike."""
        count, sequences = len(layers.logits_GSE), layers.split(batch)
        of_scope = sequences if self.scope == "sequence" else layers.with_load(load_GE)
        return {
            name: getattr(losses, name)(of_scope if FIGURES[name].scoped else sequences).view(count, -1).mean(1)
            for name in ROUTER_LOSSES
        }


def load_of(seen: Sequence[Routing]) -> Tensor:
    """Return the load `(L, E)`, float32, of what the routers chose."""
    parts = [load(Groups.of([routing], SCORES["softmax"])) for routing in seen]  # whatever they score by
    return _joined(parts)


def _alike(seen: Sequence[Routing]) -> list[list[int]]:
    """Return the layers by their numbers of experts and of choices, those of one kind together."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for layer, routing in enumerate(seen):
        kinds.setdefault((routing.logits_TE.shape[-1], routing.chosen_TK.shape[-1]), []).append(layer)
    return list(kinds.values())


def _joined(parts_LX: Sequence[Tensor]) -> Tensor:
    """Return the values of all kinds of layers, as wide as the widest."""
    widest = max(part.shape[-1] for part in parts_LX)
    return torch.cat([pad(part, (0, widest - part.shape[-1])) if part.ndim > 1 else part for part in parts_LX])
