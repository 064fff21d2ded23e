"""Gradients and saved tensors as if all were on one device: their norm, their clipping, their gathering."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from upcycle.moe.device import wide

PIECE = 2**16
"""Elements of a gradient that are widened to float64 at a time on a CPU: they stay in its cache."""


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whole, under their names, which are those of the whole model; to be called by all processes.

    What is whole already is not copied.
    """
    return {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in tensors.items()}


def gradient_norms(groups: Mapping[str, Sequence[Tensor]], device: torch.device) -> dict[str, Tensor]:
    """Return L2 norms of gradients, 0-dimensional, on `device`: "total", and that of each group.

    Squares are summed in float64 where the device has it: summed in float32, as `torch.nn.utils.get_total_norm` does on
    a CPU, 64 million elements lose 0.5% of the norm. NaN and infinity stay what they are. The device is not waited for.
    """
    squares = {
        name: torch.stack([torch.zeros((), dtype=wide(device), device=device), *_squares(gradients, device)]).sum()
        for name, gradients in groups.items()
    }
    total = torch.stack(list(squares.values())).sum()
    return {"total": total.sqrt(), **{name: square.sqrt() for name, square in squares.items()}}


def _squares(gradients: Iterable[Tensor], device: torch.device) -> Iterable[Tensor]:
    return (_sum_of_squares(gradient).to(device, non_blocking=True) for gradient in gradients)


def _sum_of_squares(gradient: Tensor) -> Tensor:
    """Return `sum_i g_i^2`; a GPU widens element by element, a CPU would take thirty times as long for that."""
    if gradient.device.type != "cpu":
        norm: Tensor = torch.linalg.vector_norm(gradient, dtype=wide(gradient.device))
        return norm.square()
    total = torch.zeros((), dtype=torch.float64)
    for piece in gradient.flatten().split(PIECE):
        widened = piece.double()
        total += torch.dot(widened, widened)
    return total


def clip(weights: Sequence[Tensor], max_norm: float, total: Tensor) -> None:
    """Scale the gradients of `weights` by `max_norm / total` where that is below one (1211.5063, algorithm 1).

    Nothing is scaled where `total` is not finite: divided by infinity all finite gradients would be zero, and the one
    that is to blame could not be found. The device is not waited for.
    """
    finite = torch.where(total.isfinite(), total, 0.0).float()
    torch.nn.utils.clip_grads_with_norm_(weights, max_norm, finite)
