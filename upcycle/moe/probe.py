"""Measures whether a router can learn: the norm of its gradient now, and after its experts have moved one step.

Identical experts give the router no gradient: with weights that sum to one, shifting weight from one expert to
another changes nothing. The first optimizer step ends that, since each expert sees its own tokens. The second number
is the router's gradient after such a step: AdamW's first update, `-lr * sign(gradient)` (1711.05101, algorithm 2 at
t = 1 without decay), applied to the experts' down projections, gradients from above held at their values.

Shapes: B batch, T tokens, D hidden, F intermediate, E experts, K top-k, S the tokens of one expert,
R some rows of a matrix.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.families.targets.target import Target

LEARNING_RATE = 1e-4
"""Learning rate of that step, a usual one for continued training."""

ROWS = 256
"""Rows of a down projection whose gradient is in memory at a time."""


@dataclass(frozen=True, slots=True)
class RouterGradient:
    """L2 norms of the loss's gradient with respect to one layer's router weight `(E, D)`."""

    now: float
    after_step: float


def probe_layer(
    layer: nn.Module, target: Target, hidden_BTD: Tensor, kwargs: dict[str, Any], gradient_BTD: Tensor
) -> tuple[RouterGradient, Tensor]:
    """Run one layer forwards and backwards; return its router's gradient norms and the gradient `(B, T, D)` below it.

    `gradient_BTD` is the loss's gradient with respect to the layer's output.
    """
    block, router = layer.get_submodule(target.block), layer.get_submodule(target.router.module)
    weight = router.get_parameter("weight").requires_grad_()
    seen: list[Tensor] = []
    hook = block.register_forward_hook(lambda _module, inputs, output: seen.extend((inputs[0], output)))
    try:
        with torch.enable_grad():
            below_BTD = hidden_BTD.detach().requires_grad_()
            output_BTD = layer(below_BTD, **kwargs)
            into_BTD, out_of_BTD = seen
            now_ED, at_block_BTD, gradient_below_BTD = torch.autograd.grad(
                output_BTD, (weight, out_of_BTD, below_BTD), gradient_BTD
            )
    finally:
        hook.remove()
    experts = layer.get_submodule(target.experts)
    after_ED = _gradient_after_step(router, experts, into_BTD.detach().flatten(0, 1), at_block_BTD.flatten(0, 1))
    return RouterGradient(float(now_ED.norm()), float(after_ED.norm())), gradient_below_BTD


def _gradient_after_step(router: nn.Module, experts: nn.Module, into_TD: Tensor, gradient_TD: Tensor) -> Tensor:
    """Return the router's gradient `(E, D)` once the down projections have made their step."""
    with torch.enable_grad():
        _, weights_TK, chosen_TK = router(into_TD)
    value_TK = torch.zeros_like(weights_TK)
    for expert in chosen_TK.unique().tolist():
        tokens_S, slots_S = torch.where(chosen_TK == expert)
        outer_SD = gradient_TD[tokens_S]
        moved_SD = _stepped_output(experts, expert, into_TD[tokens_S], outer_SD, weights_TK[tokens_S, slots_S])
        value_TK[tokens_S, slots_S] = (outer_SD * moved_SD).sum(-1)  # dL/dw of this choice
    (gradient_ED,) = torch.autograd.grad(weights_TK, router.get_parameter("weight"), value_TK)
    return gradient_ED


@torch.no_grad()
def _stepped_output(experts: nn.Module, expert: int, into_SD: Tensor, outer_SD: Tensor, weights_S: Tensor) -> Tensor:
    """Return what one expert puts out `(S, D)` after its down projection's first AdamW step."""
    gate_up_2FD, down_DF = (experts.get_parameter(name)[expert] for name in ("gate_up_proj", "down_proj"))
    gate_SF, up_SF = (into_SD @ gate_up_2FD.T).chunk(2, dim=-1)
    activation: Any = experts.act_fn
    inner_SF: Tensor = activation(gate_SF) * up_SF
    weighted_SD = weights_S[:, None] * outer_SD
    moved = []
    for rows in torch.arange(len(down_DF)).split(
        ROWS
    ):  # the gradient of a whole matrix would be as large as the matrix
        gradient_RF = weighted_SD[:, rows].T @ inner_SF
        moved.append(inner_SF @ down_DF[rows].T - LEARNING_RATE * (inner_SF @ gradient_RF.sign_().T))
    return torch.cat(moved, dim=-1)
