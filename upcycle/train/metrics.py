"""What is said of a step: one JSON object, a line of `metrics.jsonl`.

Shapes: L layers, E experts, P parameters of one expert.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from upcycle.moe.routing import Router
from upcycle.train.alerts import COLD, DEAD
from upcycle.train.model import Trainee
from upcycle.train.objective import ROUTER_LOSSES
from upcycle.train.step import Outcome

ROWS = 256
"""Rows of each expert that are widened at a time."""

PEAK_FLOPS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "H800": 989e12, "A100": 312e12,
    "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A6000": 155e12, "A10": 125e12, "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}  # fmt: skip
"""Of dense bf16 matrix products a second, from the vendor's data sheets; the first name that fits counts."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An Outcome as numbers."""

    loss: float
    norms: dict[str, float]
    losses: dict[str, list[float]]  # of the routers, per layer
    entropy: list[float]
    load: list[list[float]]
    stop: int


def fetch(outcome: Outcome) -> Fetched:
    """Return an outcome as numbers, brought from the device in one transfer."""
    routers = outcome.routers
    parts = [outcome.loss.view(1), outcome.stop, torch.stack(list(outcome.norms.values()))]
    if routers:
        parts += [routers.losses_3L.flatten(), routers.entropy_L, routers.load_LE.flatten()]
    numbers = torch.cat([part.to(outcome.loss.dtype) for part in parts]).tolist()
    names = list(outcome.norms)
    loss, stop, norms, rest = numbers[0], numbers[1], numbers[2 : 2 + len(names)], numbers[2 + len(names) :]
    experts = routers.experts if routers else ()
    layers, widest = len(experts), max(experts, default=0)
    rows = [rest[index * layers : (index + 1) * layers] for index in range(4)]
    flat_load = rest[4 * layers :]
    return Fetched(
        loss,
        dict(zip(names, norms, strict=True)),
        dict(zip(ROUTER_LOSSES, rows[:3], strict=True)) if layers else {},
        rows[3],
        [flat_load[layer * widest : layer * widest + count] for layer, count in enumerate(experts)],
        int(stop),
    )


def describe(step: int, fetched: Fetched, rates: Mapping[str, float], layers: Sequence[int]) -> dict[str, Any]:
    """Return what is said of a step but for time and data; `layers` are the numbers of those with experts."""
    return {
        "step": step,
        "loss": fetched.loss,
        **_mean_losses(fetched),
        "lr": dict(rates),
        "grad_norm": fetched.norms,
        "layers": _layers(fetched, layers),
    }


def _layers(fetched: Fetched, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return what is said of every layer."""
    return [
        {
            "layer": numbers[layer],
            "load": load,
            "max_over_min": max(load) / min(load) if min(load) > 0 else None,
            "max_over_mean": max(load) * len(load),
            "entropy": fetched.entropy[layer],
            "dead": sum(share * len(load) < DEAD for share in load),
            "cold": sum(share * len(load) < COLD for share in load),
            **{name: fetched.losses[name][layer] for name in ROUTER_LOSSES},
        }
        for layer, load in enumerate(fetched.load)
    ]


def _mean_losses(fetched: Fetched) -> dict[str, float | None]:
    """Return the routers' losses as means over layers; None for a dense model."""
    values = {name: fetched.losses.get(name) for name in ROUTER_LOSSES}
    return {name: math.fsum(value) / len(value) if value else None for name, value in values.items()}


def expert_cosines(routers: Sequence[Router]) -> list[float]:
    """Return `expert_cosine` of every layer."""
    return [expert_cosine(router.experts) for router in routers]


@torch.no_grad()
def expert_cosine(experts: nn.Module) -> float:
    """Return the mean cosine of the weights of two experts of a layer: 1 for copies, 0 for independent ones.

    From the sum of the unit vectors u_i of E experts: `(|sum u_i|^2 - E) / (E (E - 1))`.
    """
    weights = [value for value in experts.parameters(recurse=False) if value.ndim > 2]
    count = len(weights[0])
    squares_E, length = torch.zeros(count, device=weights[0].device), torch.zeros((), device=weights[0].device)
    for part in _pieces(weights):
        squares_E += part.square().flatten(1).sum(1)
    inverse_E = squares_E.sqrt().clamp(min=1e-30).reciprocal()
    for part in _pieces(weights):
        length += torch.einsum("e,exy->xy", inverse_E, part).square().sum()
    return float((length - count) / (count * (count - 1))) if count > 1 else 1.0


def _pieces(weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """A few rows of every expert at a time, float32."""
    for weight in weights:
        for part in weight.split(ROWS, dim=1):
            yield part.float()


def flops_per_token(active: int, layers: int, width: int, length: int) -> float:
    """Return floating-point operations of a training step for one token (2204.02311, appendix B): `6 N + 12 L D S`.

    N active parameters; layers L of attention with heads of total width D, over sequences of S tokens.
    """
    return 6.0 * active + 12.0 * layers * width * length


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return what the device can do a second at best; None where that is not known."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if all(word in name for word in known.split())), None)


class Meter:
    """Measures speed, and what part of the device's it is (model FLOPs utilisation, 2204.02311, appendix B)."""

    def __init__(self, trainee: Trainee, length: int, accelerator: Accelerator) -> None:
        """Measure the training of a model on sequences of `length` tokens."""
        self._trainee, self._length = trainee, length
        self._peak = peak_flops(accelerator.device, trainee.dtype)
        self._processes = accelerator.num_processes
        self._began = time.perf_counter()

    def restart(self) -> None:
        """Begin to measure; what was before, such as saving, does not count."""
        self._began = time.perf_counter()

    def lap(self, tokens: int, shares: Sequence[float]) -> dict[str, float | None]:
        """Return the speed since the last call, in which `tokens` met such shares of the layers' experts."""
        began, self._began = self._began, time.perf_counter()
        speed = tokens / max(self._began - began, 1e-9)
        if self._peak is None:
            return {"tokens_per_second": speed, "mfu": None}
        config = self._trainee.model.config
        width = config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        active = self._trainee.active_parameters(shares)
        flops = flops_per_token(active, config.num_hidden_layers, width, self._length)
        return {"tokens_per_second": speed, "mfu": speed * flops / (self._peak * self._processes)}
