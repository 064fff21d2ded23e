"""Packs named tensors into one, in the order of their names, for a single all-reduce or transfer; and unpacks it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from upcycle.moe.device import wide

Named = Mapping[str, Tensor]
"""Name -> tensor of any shape, all on one device."""


def pack(named: Named) -> Tensor:
    """Return all values as `(N,)`, without gradient, in the widest type of the device, which adds no error."""
    parts = [named[name].detach().flatten() for name in sorted(named)]
    return torch.cat([part.to(wide(part.device)) for part in parts])


def unpack(flat_N: Tensor, like: Named) -> dict[str, Tensor]:
    """Return what was packed under the names and in the shapes of `like`, in the type and on the device of `flat_N`."""
    names = sorted(like)
    pieces = flat_N.split([like[name].numel() for name in names])
    return {name: piece.view(like[name].shape) for name, piece in zip(names, pieces, strict=True)}
