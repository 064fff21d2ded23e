"""Runs the dense model and the MoE on one text, layer by layer from disk, and compares what they compute.

Shapes: B batch (1), T tokens, D hidden, V vocabulary, E experts, K top-k.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from upcycle.checkpoint.reader import Checkpoint
from upcycle.families.pairs import Pair
from upcycle.moe.groups import Groups
from upcycle.moe.load import LayerCall, StreamedModel
from upcycle.moe.loss import summed_cross_entropy
from upcycle.moe.measures import measured
from upcycle.moe.probe import RouterGradient, probe_layer
from upcycle.moe.routing import SCORES, Routing, find_routers, watch

POSITIONS = 64
"""Rows of logits worked on at a time, so that temporaries stay small beside the logits themselves."""

TOLERANCE = 1e-5
"""Largest logit difference of an exact conversion, relative to the largest dense logit: float32 summation order."""


@dataclass
class Layer:
    """How one layer of the MoE compares to the dense one."""

    error: float = 0.0  # largest difference of its output's hidden states, relative to the largest dense one
    router: dict[str, Any] = field(default_factory=dict)  # figures of `upcycle.figures` by name; none of a dense layer
    gradient: RouterGradient | None = None  # likewise


@dataclass
class Parity:
    """How the two models compare on one text."""

    tokens: int
    largest_logit: float = 0.0  # of the dense model
    difference: float = 0.0  # largest absolute difference of a logit
    agreement: float = 0.0  # share of positions with the same likeliest token
    dense_loss: float = 0.0  # mean next-token cross-entropy, nats
    moe_loss: float = 0.0
    layers: list[Layer] = field(default_factory=list)

    @property
    def relative(self) -> float:
        """Largest logit difference relative to the largest dense logit."""
        return self.difference / max(self.largest_logit, 1e-30)

    @property
    def same(self) -> bool:
        """Whether the difference is what float32 rounding makes, and no likeliest token changes."""
        return self.relative <= TOLERANCE and self.agreement == 1.0


def run_both(dense: Checkpoint, moe: Checkpoint, pair: Pair, ids_BT: Tensor) -> Parity:
    """Return how `moe` compares to `dense` on token ids `(1, T)`."""
    parity = Parity(tokens=ids_BT.shape[1])
    states, dense_TV = _run(StreamedModel(dense, pair.dense.spine), ids_BT)  # not kept: it holds the memory of a layer
    parity.largest_logit = float(dense_TV.abs().max())
    model = StreamedModel(moe, pair.target.spine)
    calls, hidden_BTD = _run_compared(model, pair.target.router.scores, ids_BT, states, parity)
    del states
    moe_TV = model.logits(hidden_BTD[0])
    _compare_logits(parity, dense_TV, moe_TV, ids_BT[0, 1:])
    del dense_TV
    gradient_BTD = hidden_gradient(model, hidden_BTD[0], moe_TV, ids_BT[0, 1:])
    del moe_TV
    for layer, gradient in zip(parity.layers, probe_routers(model, calls, gradient_BTD), strict=True):
        layer.gradient = gradient
    return parity


def _run(model: StreamedModel, ids_BT: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return what every layer was given and the final hidden states, `(B, T, D)` each; and logits `(T, V)`."""
    states: list[Tensor] = []
    hidden_BTD = model.run(ids_BT, lambda _index, call: states.append(call.hidden_BTD))
    return [*states, hidden_BTD], model.logits(hidden_BTD[0])


def _run_compared(
    model: StreamedModel, scoring: str, ids_BT: Tensor, states: list[Tensor], parity: Parity
) -> tuple[list[LayerCall], Tensor]:
    """Run the MoE; note each layer's error and router; return how each layer was called and the final states."""
    calls: list[LayerCall] = []
    parity.layers = [Layer() for _ in model.layers]

    def before(index: int, call: LayerCall) -> None:
        calls.append(call)
        if index:
            parity.layers[index - 1].error = _relative(call.hidden_BTD, states[index])
        states[index] = call.hidden_BTD  # the dense state has been used; this frees it

    def note_router(index: int, routing: Routing) -> None:
        parity.layers[index].router = router_figures(routing, scoring)

    hooks = [
        hook
        for index, layer in enumerate(model.layers)
        for router in find_routers(layer)
        for hook in watch(router.module, partial(note_router, index))
    ]
    hidden_BTD = model.run(ids_BT, before)
    for hook in hooks:
        hook.remove()
    # The last layer's own output is not kept; the final norm's stands for it.
    parity.layers[-1].error = _relative(hidden_BTD, states[-1])
    return calls, hidden_BTD


def router_figures(routing: Routing, scoring: str) -> dict[str, Any]:
    """Return every figure that one router has on one text, by name; `scoring` is one of `SCORES`."""
    groups = Groups.of([routing], SCORES[scoring])
    found = {name: value[0].tolist() for name, value in (measured("tokens", groups) | measured("text", groups)).items()}
    return found | measured("load", found["load"])


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _compare_logits(parity: Parity, dense_TV: Tensor, moe_TV: Tensor, targets_T: Tensor) -> None:
    parity.agreement = float((dense_TV.argmax(-1) == moe_TV.argmax(-1)).float().mean())
    parity.dense_loss, parity.moe_loss = _loss(dense_TV[:-1], targets_T), _loss(moe_TV[:-1], targets_T)
    parity.difference = float(dense_TV.sub_(moe_TV).abs_().max())  # in place: the dense logits are not needed again


def _loss(logits_TV: Tensor, targets_T: Tensor) -> float:
    """Return the mean cross entropy in nats."""
    blocks = zip(logits_TV.split(POSITIONS), targets_T.split(POSITIONS), strict=True)
    return sum(float(summed_cross_entropy(*block)) for block in blocks) / len(targets_T)


def hidden_gradient(model: StreamedModel, hidden_TD: Tensor, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """Return the loss's gradient `(1, T, D)` at the final hidden states; uses up their logits.

    d loss / d logits = (softmax - onehot) / (T - 1) for the T - 1 positions that have a target.
    """
    for block_TV in logits_TV.split(POSITIONS):
        block_TV.copy_(block_TV.softmax(-1))
    logits_TV[torch.arange(len(targets_T)), targets_T] -= 1
    logits_TV[-1] = 0
    logits_TV /= len(targets_T)
    given_TD, gradient_TD = hidden_TD.detach().requires_grad_(), torch.zeros_like(hidden_TD)
    with torch.enable_grad():
        for columns, block_TV in model.logit_blocks(given_TD):
            gradient_TD += torch.autograd.grad(block_TV, given_TD, logits_TV[:, columns])[0]
    return gradient_TD[None]


def probe_routers(model: StreamedModel, calls: list[LayerCall], gradient_BTD: Tensor) -> list[RouterGradient | None]:
    """Return the gradient of each layer's router, None for a dense layer; uses up `calls`, those of all layers.

    Goes back through the layers, last to first, with the loss's gradient at the final hidden states.
    """
    gradient_BTD = _through_norm(model, calls[-1], gradient_BTD)
    found = []
    for index in reversed(range(len(model.layers))):
        with model.layer(index) as layer:
            gradient, gradient_BTD = probe_layer(layer, calls.pop(), gradient_BTD)
        found.append(gradient)
    return found[::-1]


def _through_norm(model: StreamedModel, call: LayerCall, gradient_BTD: Tensor) -> Tensor:
    """Return the gradient below the final norm; the last layer is run once more for the norm's input."""
    with model.layer(len(model.layers) - 1) as layer, torch.no_grad():
        into_BTD = call.run(layer)
    with model.final_norm() as norm, torch.enable_grad():
        into_BTD.requires_grad_()
        below_BTD: Tensor = torch.autograd.grad(norm(into_BTD), into_BTD, gradient_BTD)[0]
    return below_BTD
