"""Measures whether a router can learn: the norm of its gradient now, and after its experts have moved one step.

Identical experts give the router no gradient: with weights that sum to one, shifting weight from one expert to
another changes nothing. The first optimizer step ends that, since each expert sees its own tokens. The second number
is the router's gradient after such a step: AdamW's first update, `-lr * sign(gradient)` (1711.05101, algorithm 2 at
t = 1 without decay), applied to the experts' down projections, gradients from above held at their values.

Shapes: B batch, T tokens, D hidden, F intermediate, E experts, K top-k, S the tokens of one expert,
R some rows of a matrix.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.moe.load import LayerCall
from upcycle.moe.routing import find_routers

LEARNING_RATE = 1e-4
"""Learning rate of that step, a usual one for continued training."""

ROWS = 256
"""Rows of a down projection whose gradient is in memory at a time."""


@dataclass(frozen=True, slots=True)
class RouterGradient:
    """L2 norms of the loss's gradient with respect to one layer's router weight `(E, D)`."""

    now: float
    after_step: float


def probe_layer(layer: nn.Module, call: LayerCall, gradient_BTD: Tensor) -> tuple[RouterGradient | None, Tensor]:
    """Run one layer forwards and backwards; return its router's gradient norms and the gradient `(B, T, D)` below it.

    `gradient_BTD` is the loss's gradient with respect to the layer's output; a dense layer has no router. What a layer
    takes from layers below beside the hidden states (Gemma 4's shared keys and values) is held at its values.
    """
    seen: list[Tensor] = []
    routers = find_routers(layer)
    hooks = [router.experts.register_forward_hook(partial(_cut, seen)) for router in routers]
    weights = [router.weight.requires_grad_() for router in routers]
    try:
        with torch.enable_grad():
            below_BTD = call.hidden_BTD.detach().requires_grad_()
            output_BTD = call.run(layer, below_BTD)
    finally:
        for hook in hooks:
            hook.remove()
    if not routers:
        return None, torch.autograd.grad(output_BTD, below_BTD, gradient_BTD)[0]
    into_TD, chosen_TK, weights_TK, out_of_TD = seen
    now_ED, at_experts_TD, gradient_below_BTD = torch.autograd.grad(
        output_BTD, (*weights, out_of_TD, below_BTD), gradient_BTD, retain_graph=True
    )
    del output_BTD, out_of_TD  # and with them all of the graph but the router's
    seen.clear()
    value_TK = _value_after_step(routers[0].experts, into_TD.detach(), chosen_TK, weights_TK.detach(), at_experts_TD)
    (after_ED,) = torch.autograd.grad(weights_TK, weights, value_TK)
    return RouterGradient(float(now_ED.norm()), float(after_ED.norm())), gradient_below_BTD


def _cut(seen: list[Tensor], _experts: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], output_TD: Tensor) -> Tensor:
    """Note what experts are given and put out: hidden states `(T, D)`, choices and weights `(T, K)`, `(T, D)`.

    What the layer goes on with is a copy, so that it does not write over what is noted.
    """
    seen.extend((*inputs, output_TD))
    return output_TD.clone()


def _value_after_step(
    experts: nn.Module, into_TD: Tensor, chosen_TK: Tensor, weights_TK: Tensor, gradient_TD: Tensor
) -> Tensor:
    """Return the loss's gradient `(T, K)` at the choices' weights once the down projections have made their step."""
    value_TK = torch.zeros_like(weights_TK)
    for expert in chosen_TK.unique().tolist():
        tokens_S, slots_S = torch.where(chosen_TK == expert)
        outer_SD = gradient_TD[tokens_S]
        moved_SD = _stepped_output(experts, expert, into_TD[tokens_S], outer_SD, weights_TK[tokens_S, slots_S])
        value_TK[tokens_S, slots_S] = (outer_SD * moved_SD).sum(-1)
    return value_TK


@torch.no_grad()
def _stepped_output(experts: Any, expert: int, into_SD: Tensor, outer_SD: Tensor, weights_S: Tensor) -> Tensor:
    """Return what one expert puts out `(S, D)` after its down projection's first AdamW step."""
    gate_up_2FD, down_DF = (experts.get_parameter(name)[expert] for name in ("gate_up_proj", "down_proj"))
    inner_SF: Tensor = experts._apply_gate(into_SD @ gate_up_2FD.T)
    weighted_SD = weights_S[:, None] * outer_SD
    moved = []
    for rows in torch.arange(len(down_DF)).split(
        ROWS
    ):  # the gradient of a whole matrix would be as large as the matrix
        gradient_RF = weighted_SD[:, rows].T @ inner_SF
        moved.append(inner_SF @ down_DF[rows].T - LEARNING_RATE * (inner_SF @ gradient_RF.sign_().T))
    return torch.cat(moved, dim=-1)
