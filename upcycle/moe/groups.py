"""Groups of tokens and what a router decided for them: what router losses and figures are computed of.

A group is all tokens of a layer, or one sequence of them, or whatever a loss counts over. Groups of several layers are
computed together where the layers have as many experts and choices.

Shapes: G groups, S tokens of a group, E experts, K top-k.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from upcycle.moe.routing import Routing


@dataclass(frozen=True, slots=True)
class Groups:
    """Tokens in groups of one size, each with a router's logits, probabilities and choices."""

    logits_GSE: Tensor  # as the router gives them, float32
    probabilities_GSE: Tensor  # the router's own scores, softmax or sigmoid, divided by their sum over experts
    chosen_GSK: Tensor  # int64
    mask_GS: Tensor | None = None  # true for tokens, false for padding; a group without tokens has the loss 0
    load_GE: Tensor | None = None  # of a whole batch of which each group is a piece; no gradient

    @classmethod
    def of(cls, layers: Sequence[Routing], scores: Callable[[Tensor], Tensor]) -> "Groups":
        """Return a group for each of `layers`, which have equal shapes; `scores` makes probabilities of logits."""
        logits_GSE = torch.stack([routing.logits_TE for routing in layers]).float()
        return cls(logits_GSE, scores(logits_GSE), torch.stack([routing.chosen_TK for routing in layers]))

    def split(self, count: int) -> "Groups":
        """Return each group as `count` groups of consecutive tokens, such as the sequences of a micro-batch."""
        parts = (self.logits_GSE, self.probabilities_GSE, self.chosen_GSK)
        return Groups(*(part.reshape(len(part) * count, -1, part.shape[-1]) for part in parts))

    def with_load(self, load_GE: Tensor | None) -> "Groups":
        """Return the same groups with the load `(G, E)` of the whole that they are pieces of."""
        return replace(self, load_GE=load_GE)

    def mean(self, values_GSX: Tensor) -> Tensor:
        """Return the mean `(G, X)` over the tokens of each group."""
        if self.mask_GS is None:
            return values_GSX.mean(1)
        kept_GSX = torch.where(self.mask_GS[:, :, None].bool(), values_GSX, 0)  # not a product: padding may be NaN
        return kept_GSX.sum(1) / self.mask_GS.sum(1, keepdim=True).clamp(min=1)
