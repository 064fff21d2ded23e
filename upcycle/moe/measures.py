"""What a router does, in numbers.

Shapes: T tokens, E experts, K top-k.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RouterMeasures:
    """One layer's router on one text."""

    logit_std: float  # over all tokens and experts
    entropy: float  # mean over tokens of the entropy of the softmax, divided by ln(E): 1 is undecided, 0 certain
    load: tuple[float, ...]  # share of the T * K choices that each expert gets; 1/E is even
    unused: int  # experts that no token chose

    @property
    def max_over_mean(self) -> float:
        """Load of the busiest expert relative to an even share."""
        return max(self.load) * len(self.load)


def measure_router(logits_TE: Tensor, chosen_TK: Tensor) -> RouterMeasures:
    """Return the measures of raw router logits `(T, E)` and chosen experts `(T, K)`, integers."""
    experts = logits_TE.shape[-1]
    log_probabilities_TE = torch.log_softmax(logits_TE.float(), dim=-1)
    entropy_T = -(log_probabilities_TE.exp() * log_probabilities_TE).sum(-1)
    counts_E = torch.bincount(chosen_TK.flatten(), minlength=experts)
    return RouterMeasures(
        logit_std=float(logits_TE.float().std(correction=0)),
        entropy=float(entropy_T.mean()) / log(experts) if experts > 1 else 1.0,
        load=tuple(float(count) / chosen_TK.numel() for count in counts_E),
        unused=int((counts_E == 0).sum()),
    )
