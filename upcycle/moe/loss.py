"""The cross entropy of next tokens: one function for training, for held-out text and for `verify`.

Shapes: T positions, V vocabulary.
"""

from torch import Tensor
from torch.nn import functional

from upcycle.moe.device import wide

IGNORED = -100
"""Target id of positions that the loss skips (torch's `ignore_index`)."""


def summed_cross_entropy(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """Return `sum_t (ln sum_v exp(z_tv) - z_t,target)` over the positions that have a target, 0-dimensional, in nats.

    The logits are widened to float32 and the sum is `wide`: in float32 it would lose the sixth digit of its mean.
    """
    losses_T = functional.cross_entropy(logits_TV.float(), targets_T, ignore_index=IGNORED, reduction="none")
    return losses_T.sum(dtype=wide(losses_T.device))
