"""Starts a router from its experts: each row is the input that the expert's update answers most (Arrow, 2405.11157).

Shapes: E experts, D hidden, F intermediate, R rank.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from upcycle.errors import InputError


def prototypes(experts: Mapping[str, Tensor], names: Sequence[str] = ()) -> Tensor:
    """Return `(E, D)`, float32, of unit rows: the direction of the input that each expert's update answers most.

    `experts` holds one layer's `gate_A`, `gate_B`, `up_A` and `up_B`, shaped as LoraExperts has them; `names` are what
    errors call the experts. A row is the first right singular vector of the update of all that reads the input,
    `[B_gate A_gate; B_up A_up]`, without a gate `B_up A_up`. A factor common to both, such as `s`, changes nothing.

    A singular vector has no sign. Arrow does not need one, for it routes by `|x v|`; a softmax router is linear and
    prefers one side. The sign here makes the entry of largest magnitude positive, the first of them if several are:
    the same in every run, but no better founded than the other, so these rows are where training starts.

    Raises InputError, naming them, for experts that change neither gate nor up here: they have no prototype.
    """
    small_EXD = torch.cat(
        [
            _reduced(experts[f"{part}_A"].double(), experts[f"{part}_B"].double())
            for part in ("gate", "up")
            if f"{part}_A" in experts
        ],
        dim=1,
    )
    empty = (small_EXD == 0).all(-1).all(-1).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            "experts that leave the gate and up projections of a layer as they are have no prototype there",
            found=", ".join(names[index] if index < len(names) else f"expert {index}" for index in empty),
            hint="--router normal or zeros starts routers without prototypes",
        )
    vectors_ED: Tensor = torch.linalg.svd(small_EXD, full_matrices=False).Vh[:, 0]
    largest_E1 = vectors_ED.abs().argmax(dim=-1, keepdim=True)
    return (vectors_ED * vectors_ED.gather(1, largest_E1).sign()).float()


def _reduced(A_ERD: Tensor, B_EFR: Tensor) -> Tensor:
    """Return `(E, min(F, R), D)` with the right singular vectors of `B A`: with `B = Q T`, those are of `T A`."""
    triangle_EXR: Tensor = torch.linalg.qr(B_EFR, mode="r").R
    return triangle_EXR @ A_ERD
