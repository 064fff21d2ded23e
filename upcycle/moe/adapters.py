"""Adapter experts: small experts and a router beside the frozen FFN of a dense model. Plain modules, no peft.

Every kind of expert adds to the FFN what is zero at the start, so that the model begins as the dense one, bit for bit:

| kind | the layer computes | after |
|---|---|---|
| lora | `sum_i w_i FFN_i(x)`, FFN_i the whole FFN with `W + s B_i A_i` in gate, up and down | 2404.15159 |
| bottleneck | `FFN(x) + s sum_i w_i D_i(act(G_i x) * U_i x)`, act the FFN's own | 2110.04366 |
| pesc | `FFN(x) + s sum_i w_i U_i gelu(D_i FFN(x))` | 2401.02731 |
| ia3 | `sum_i w_i W_down((1 + v_i) * act(W_gate x) * W_up x)` | 2309.05444 |

In an FFN without a gate, `W_down act(W_up x)`, lora and ia3 change that, and a bottleneck is `D_i act(U_i x)`.

Experts are so small that all of them are computed for every token, as matrix products without any sorting, and the
router's zeros take away those that were not chosen; only the wide activation of `lora` is computed per chosen expert.

Shapes: T tokens, E experts, K top-k, D hidden, F intermediate, R rank (or the width of a bottleneck), X any.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import dropout, gelu, linear

from upcycle.moe.groups import Groups
from upcycle.moe.losses import balance_loss, z_loss
from upcycle.moe.lowrank import Reading, activated, mixed_hidden

Scoring = Literal["topk", "dense", "top1"]


@dataclass(frozen=True, slots=True)
class Ffn:
    """The frozen feed-forward network of a layer, and the module that computes it.

    It is `down(act(gate(x)) * up(x))`; `gate_up` gives both at once, the gate first; without either it is
    `down(act(up(x)))`.
    """

    block: nn.Module
    gate: nn.Module | None
    up: nn.Module | None
    down: nn.Module
    act: Callable[[Tensor], Tensor]
    gate_up: nn.Module | None = None
    dropout: float = 0.0  # probability with which the block drops parts of what it gives, in training

    def read(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return gate and up `(..., F)`; the gate is None where there is none."""
        if self.gate_up is not None:
            gate, up = self.gate_up(x).chunk(2, dim=-1)
            return gate, up
        assert self.up is not None  # noqa: S101 - one of the two is there
        return None if self.gate is None else self.gate(x), self.up(x)

    def dropped(self, output: Tensor) -> Tensor:
        """Return what the block would give of the output `(..., D)` of its down projection."""
        return dropout(output, self.dropout, self.block.training) if self.dropout else output


class AdapterRouter(nn.Module):
    """Decides which experts a token uses, in float32 whatever the model's data type.

    | scoring | experts | weights |
    |---|---|---|
    | topk | the K likeliest | their probabilities divided by their sum |
    | dense | all | their probabilities |
    | top1 | the likeliest | its probability, as in 2101.03961 |

    In training, `balance_coef` and `z_coef` weigh losses over all tokens of a call. The backward pass adds their
    gradient by itself, so that any training loop has them, and gradient checkpointing counts them once. They are 0
    where a training adds losses of its own. What multiplies the loss of a training (a GradScaler, one over the steps of
    accumulation) must multiply them too, since their gradient is not scaled with it.
    """

    def __init__(self, experts: int, hidden: int, scoring: Scoring, top_k: int) -> None:
        """Make a router whose weights are not drawn yet."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, hidden))
        self.scoring = scoring
        self.top_k = {"topk": top_k, "dense": experts, "top1": 1}[scoring]
        self.balance_coef = self.z_coef = 0.0

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits `(T, E)` and weights `(T, K)`, float32, and the chosen experts `(T, K)`, int64."""
        with torch.autocast(x_TD.device.type, enabled=False):  # it would round what was widened
            logits_TE = linear(x_TD.float(), self.weight.float())
        probabilities_TE = logits_TE.softmax(-1)
        weights_TK, chosen_TK = probabilities_TE.topk(self.top_k, dim=-1)
        if self.scoring == "topk":
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        if self.training and torch.is_grad_enabled() and (self.balance_coef or self.z_coef):
            call = Groups(logits_TE[None], probabilities_TE[None], chosen_TK[None])
            loss = self.balance_coef * balance_loss(call) + self.z_coef * z_loss(call)
            weights_TK = _WithLoss.apply(weights_TK, loss)
        return logits_TE, weights_TK, chosen_TK


class _WithLoss(torch.autograd.Function):
    """Hands `values` on; its backward pass gives `loss` the gradient 1, as if it were added to what is minimised."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, loss: Tensor) -> Tensor:
        ctx.like = torch.ones_like(loss)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, ctx.like


class Experts(nn.Module):
    """The experts of one layer."""

    def forward(self, x: Tensor, weights_TK: Tensor, chosen_TK: Tensor, ffn: Ffn) -> Tensor:
        """Return what the layer computes instead of `ffn`, in the shape and data type of `x`."""
        raise NotImplementedError

    def draw(self, generator: Generator) -> None:
        """Draw the weights that do not start at zero."""


class LoraExperts(Experts):
    """Low-rank updates of the whole FFN, mixed after the down projection: they merge into full experts exactly."""

    def __init__(
        self,
        experts: int,
        hidden: int,
        width: int,
        rank: int,
        *,
        scaling: float,
        shared_a: bool = False,
        gated: bool = True,
    ) -> None:
        """With `shared_a` all experts have one A for each matrix (2404.19245)."""
        super().__init__()
        self.experts, self.rank, self.scaling = experts, rank, scaling
        readers = 1 if shared_a else experts
        self.gate_A = _zeros(readers, rank, hidden) if gated else None
        self.gate_B = _zeros(experts, width, rank) if gated else None
        self.up_A, self.up_B = _zeros(readers, rank, hidden), _zeros(experts, width, rank)
        self.down_A, self.down_B = _zeros(readers, rank, width), _zeros(experts, hidden, rank)

    def draw(self, generator: Generator) -> None:
        """As peft draws its A matrices."""
        for matrix in (self.gate_A, self.up_A, self.down_A):
            if matrix is not None:
                _draw_uniform(matrix, generator)

    def forward(self, x: Tensor, weights_TK: Tensor, chosen_TK: Tensor, ffn: Ffn) -> Tensor:
        """See Experts."""
        x_TD = x.flatten(0, -2)
        gate, up = ffn.read(x)
        reading = Reading(
            None if gate is None else gate.flatten(0, -2),
            up.flatten(0, -2),
            None if self.gate_A is None else linear(x_TD, _rows(self.gate_A, x)),
            linear(x_TD, _rows(self.up_A, x)),
            weights_TK.to(x.dtype),
            chosen_TK,
            None if self.gate_B is None else _columns(self.gate_B, x) * self.scaling,
            _columns(self.up_B, x) * self.scaling,
            _rows(self.down_A, x),
        )
        hidden_TF, read_TX = mixed_hidden(reading, ffn.act, self.experts)
        written_TD = read_TX @ (_columns(self.down_B, x) * self.scaling)
        output: Tensor = ffn.down(hidden_TF.view(up.shape))
        return ffn.dropped(output + written_TD.view(output.shape))


class BottleneckExperts(Experts):
    """Narrow FFNs of its own form beside the FFN: what is merged are experts of the width `F + R`, or these alone
    beside a shared expert that is the FFN.
    """

    def __init__(self, experts: int, hidden: int, rank: int, *, scaling: float, gated: bool = True) -> None:
        """Make experts of the width `rank` whose weights are not drawn yet."""
        super().__init__()
        self.scaling = scaling
        self.gate_proj = _zeros(experts, rank, hidden) if gated else None
        self.up_proj, self.down_proj = _zeros(experts, rank, hidden), _zeros(experts, hidden, rank)

    def draw(self, generator: Generator) -> None:
        """The down projections stay zero."""
        for matrix in (self.gate_proj, self.up_proj):
            if matrix is not None:
                _draw_uniform(matrix, generator)

    def forward(self, x: Tensor, weights_TK: Tensor, chosen_TK: Tensor, ffn: Ffn) -> Tensor:
        """See Experts."""
        x_TD = x.flatten(0, -2)
        gate_TX = None if self.gate_proj is None else linear(x_TD, _rows(self.gate_proj, x))
        hidden_TX = activated(ffn.act, gate_TX, linear(x_TD, _rows(self.up_proj, x)))
        weights_TE = _spread(weights_TK, chosen_TK, len(self.up_proj)) * self.scaling
        output: Tensor = ffn.block(x)
        return output + (_weighted(hidden_TX, weights_TE) @ _columns(self.down_proj, x)).view(output.shape)


class PescExperts(Experts):
    """Bottlenecks that read what the FFN gives; no stock model has such experts."""

    def __init__(self, experts: int, hidden: int, rank: int, *, scaling: float) -> None:
        """Make experts of the width `rank` whose weights are not drawn yet."""
        super().__init__()
        self.scaling = scaling
        self.down_proj, self.up_proj = _zeros(experts, rank, hidden), _zeros(experts, hidden, rank)

    def draw(self, generator: Generator) -> None:
        """The up projections stay zero."""
        _draw_uniform(self.down_proj, generator)

    def forward(self, x: Tensor, weights_TK: Tensor, chosen_TK: Tensor, ffn: Ffn) -> Tensor:
        """See Experts."""
        output: Tensor = ffn.block(x)
        hidden_TX = gelu(linear(output.flatten(0, -2), _rows(self.down_proj, x)))
        weights_TE = _spread(weights_TK, chosen_TK, len(self.down_proj)) * self.scaling
        return output + (_weighted(hidden_TX, weights_TE) @ _columns(self.up_proj, x)).view(output.shape)


class Ia3Experts(Experts):
    """A vector for each expert that scales the FFN's hidden activation; `scale` is what it adds to one."""

    def __init__(self, experts: int, width: int) -> None:
        """Make vectors of ones."""
        super().__init__()
        self.scale = _zeros(experts, width)

    def forward(self, x: Tensor, weights_TK: Tensor, chosen_TK: Tensor, ffn: Ffn) -> Tensor:
        """See Experts. Weights that do not sum to one leave the missing part to the FFN as it was."""
        hidden = activated(ffn.act, *ffn.read(x))
        weights_TE = _spread(weights_TK, chosen_TK, len(self.scale)).to(x.dtype)
        added = (weights_TE @ self.scale.to(x.dtype)).view(hidden.shape)
        return ffn.dropped(ffn.down(hidden + hidden * added))


class LoraUpdate(nn.Module):
    """A plain LoRA (2106.09685): adds `s B A x`."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, scaling: float) -> None:
        """Make an update whose weights are not drawn yet."""
        super().__init__()
        self.scaling = scaling
        self.lora_A, self.lora_B = _zeros(rank, inputs), _zeros(outputs, rank)

    def draw(self, generator: Generator) -> None:
        """B stays zero."""
        _draw_uniform(self.lora_A, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the matrix product."""
        return linear(linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype)) * self.scaling


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


@torch.no_grad()
def _draw_uniform(matrix: nn.Parameter, generator: Generator) -> None:
    """Draw from `U(-1/sqrt(n), 1/sqrt(n))`, n the number of inputs: on the CPU, the same on every device."""
    bound = 1 / sqrt(matrix.shape[-1])
    drawn = torch.empty(matrix.shape, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=generator)
    matrix.copy_(drawn)


def _rows(matrices_ERX: Tensor, x: Tensor) -> Tensor:
    """All experts' matrices below one another `(E R, X)`: those that read."""
    return matrices_ERX.flatten(0, 1).to(x.dtype)


def _columns(matrices_EXR: Tensor, x: Tensor) -> Tensor:
    """All experts' matrices `(E R, X)`, transposed: those that write."""
    return matrices_EXR.transpose(1, 2).flatten(0, 1).to(x.dtype)


def _spread(weights_TK: Tensor, chosen_TK: Tensor, experts: int) -> Tensor:
    """The weights `(T, E)`, zero where an expert was not chosen."""
    return weights_TK.new_zeros(len(weights_TK), experts).scatter(1, chosen_TK, weights_TK)


def _weighted(hidden_TX: Tensor, weights_TE: Tensor) -> Tensor:
    """The hidden activations `(T, E R)` of all experts, each times its weight."""
    tokens, experts = weights_TE.shape
    by_expert_TER = hidden_TX.view(tokens, experts, -1) * weights_TE.to(hidden_TX.dtype)[:, :, None]
    return by_expert_TER.view(tokens, -1)
