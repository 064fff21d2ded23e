"""Mixes the hidden activations of experts that are low-rank updates of an FFN, in the memory of two activations.

`z = h + sum_k w_k (h_k - h)`, where `h = act(g) * u` is the FFN's own hidden activation and `h_k` that of the k-th
expert a token chose, `act(g + a_g B_g) * (u + a_u B_u)`; without a gate they are `act(u)` and `act(u + a_u B_u)`. Since
the down projection is linear, one product with it serves all experts. Only the inputs are kept for the backward pass,
which computes the rest again: so the experts train in less memory than one plain LoRA of their size, which keeps four
activations of the width F where this keeps two.

Tokens are taken in pieces that stay in the processor's cache. That a token uses only its experts' B is done by zeros
in `a`, which is narrow: a product with all experts' B at once is cheaper than sorting tokens by expert.

Shapes: T tokens, K top-k, F intermediate, E experts, R rank; X is E * R, and in what is read R alone if A is shared.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import one_hot, pad

Activation = Callable[[Tensor], Tensor]

PIECE = {"cpu": 256}
"""Tokens at a time, by the type of the device; elsewhere `PIECE_ELSEWHERE`."""
PIECE_ELSEWHERE = 8192


class Reading(NamedTuple):
    """What the hidden activations are made of: a row for every token, then the matrices of all experts."""

    gate_TF: Tensor | None  # W_gate x; None, as all that is the gate's, of an FFN without one
    up_TF: Tensor
    gate_read_TX: Tensor | None  # A x, of all experts
    up_read_TX: Tensor
    weights_TK: Tensor
    chosen_TK: Tensor
    gate_B_XF: Tensor | None
    up_B_XF: Tensor
    down_A_XF: Tensor


_ROWS = Reading._fields.index("gate_B_XF")
"""How many of them have a row for every token."""


def activated(act: Activation, gate: Tensor | None, up: Tensor) -> Tensor:
    """Return the hidden activation of an FFN, with a gate or without."""
    return act(up) if gate is None else act(gate) * up


def mixed_hidden(reading: Reading, act: Activation, experts: int) -> tuple[Tensor, Tensor]:
    """Return `z` `(T, F)` and what the experts' down projections read of it, weighted, `(T, E R)`."""
    # autocast gives the FFN's products another data type than x has, and is not there when the backward pass comes
    dtype = reading.up_TF.dtype
    alike = (value if value is None or not value.is_floating_point() else value.to(dtype) for value in reading)
    with torch.autocast(reading.up_TF.device.type, enabled=False):
        hidden_TF, read_TX = _Mixed.apply(act, experts, *alike)
    return hidden_TF, read_TX


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, act: Activation, experts: int, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.act, ctx.experts = act, experts
        ctx.save_for_backward(*inputs)
        reading = Reading(*inputs)  # type: ignore[arg-type]
        up_TF, matrix_XF = reading.up_TF, reading.up_B_XF
        hidden_TF = torch.empty_like(up_TF, memory_format=torch.contiguous_format)  # of a fused matrix it is a half
        read_TX = up_TF.new_empty(len(up_TF), len(matrix_XF))
        for piece in _pieces(up_TF):
            part = _mix(act, experts, _cut(inputs, piece))
            hidden_TF[piece], read_TX[piece] = part
        return hidden_TF, read_TX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs: tuple[Tensor | None, ...] = ctx.saved_tensors
        wanted = [number for number, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        found = {number: torch.zeros_like(value) for number in wanted if (value := inputs[number]) is not None}
        for piece in _pieces(Reading(*inputs).up_TF):  # type: ignore[arg-type]
            leaves = [None if value is None else value.detach() for value in _cut(inputs, piece)]
            asked = [leaf.requires_grad_() for number in wanted if (leaf := leaves[number]) is not None]
            with torch.enable_grad():
                outputs = _mix(ctx.act, ctx.experts, Reading(*leaves))  # type: ignore[arg-type]
            upstream = [gradient[piece] for gradient in gradients]
            given = torch.autograd.grad(outputs, asked, upstream)
            for number, gradient in zip(wanted, given, strict=True):
                if number < _ROWS:
                    found[number][piece] = gradient
                else:
                    found[number] += gradient
        return (None, None, *(found.get(number) for number in range(len(inputs))))


def _mix(act: Activation, experts: int, of: Reading) -> tuple[Tensor, Tensor]:
    rank = len(of.up_B_XF) // experts
    base_TF = activated(act, of.gate_TF, of.up_TF)
    hidden_TF, read_TX = base_TF, of.up_TF.new_zeros(len(of.up_TF), len(of.up_B_XF))
    for k in range(of.weights_TK.shape[1]):
        mask_TE1 = one_hot(of.chosen_TK[:, k], experts).to(of.up_TF.dtype)[:, :, None]
        gate_TF = None
        if of.gate_TF is not None and of.gate_read_TX is not None and of.gate_B_XF is not None:
            gated_TF = torch.addmm(of.gate_TF, _masked(of.gate_read_TX, mask_TE1, rank), of.gate_B_XF)
            gate_TF = _laid_out_as(of.gate_TF, gated_TF)
        up_TF = torch.addmm(of.up_TF, _masked(of.up_read_TX, mask_TE1, rank), of.up_B_XF)
        expert_TF = activated(act, gate_TF, up_TF)
        weight_T1 = of.weights_TK[:, k : k + 1]
        hidden_TF = hidden_TF + weight_T1 * (expert_TF - base_TF)
        read_TX = read_TX + weight_T1 * _masked(expert_TF @ of.down_A_XF.T, mask_TE1, rank)
    return hidden_TF, read_TX


def _laid_out_as(like_TF: Tensor, values_TF: Tensor) -> Tensor:
    """Return the values with gaps between their rows where `like_TF`, the half of a fused matrix, has them.

    Activations round the last values of what lies in one piece otherwise than those before, as they compute them one by
    one; so an update of zero would change them.
    """
    return values_TF if like_TF.is_contiguous() else pad(values_TF, (0, 1))[:, :-1]


def _masked(read_TX: Tensor, mask_TE1: Tensor, rank: int) -> Tensor:
    """What is read `(T, E R)`, zero but for the expert that the mask names; one A for all is read by every expert."""
    masked_TER: Tensor = read_TX.unflatten(1, (-1, rank)) * mask_TE1
    return masked_TER.flatten(1)


def _pieces(up_TF: Tensor) -> list[slice]:
    size = PIECE.get(up_TF.device.type, PIECE_ELSEWHERE)
    return [slice(start, start + size) for start in range(0, len(up_TF), size)]


def _cut(inputs: Sequence[Tensor | None], piece: slice) -> Reading:
    rows = (None if value is None else value[piece] for value in inputs[:_ROWS])
    return Reading(*rows, *inputs[_ROWS:])  # type: ignore[arg-type]
