"""Measures tokens per second, and the share of the device's peak arithmetic that they use (MFU)."""

import time
from collections.abc import Sequence

import torch

from upcycle.moe.auto import text_config
from upcycle.train.model import Trainee
from upcycle.train.parallel.world import World

PEAK_FLOPS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "H800": 989e12, "A100": 312e12,
    "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A6000": 155e12, "A10": 125e12, "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}  # fmt: skip
"""Dense bf16 operations a second, from the vendor's data sheets; the first name that fits counts."""


def flops_per_token(active: int, layers: int, width: int, length: int) -> float:
    """Return floating-point operations of a training step for one token (2204.02311, appendix B): `6 N + 12 L D S`.

    N active parameters; layers L of attention with heads of total width D, over sequences of S tokens.
    """
    return 6.0 * active + 12.0 * layers * width * length


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the device's peak bf16 operations a second; None where they are not known."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if all(word in name for word in known.split())), None)


class Meter:
    """Measures speed and model FLOPs utilisation (2204.02311, appendix B)."""

    def __init__(self, trainee: Trainee, length: int, world: World) -> None:
        """Measure the training of a model on sequences of `length` tokens."""
        self._trainee, self._length = trainee, length
        self._peak = peak_flops(world.device, trainee.dtype)
        self._processes = world.size
        self._began = time.perf_counter()

    def restart(self) -> None:
        """Start the clock anew, so that time before, such as that of saving, does not count."""
        self._began = time.perf_counter()

    def lap(self, tokens: int, shares: Sequence[float]) -> dict[str, float | None]:
        """Return the speed since the last call, for `tokens` that each used such shares of the layers' experts."""
        began, self._began = self._began, time.perf_counter()
        speed = tokens / max(self._began - began, 1e-9)
        if self._peak is None:
            return {"tokens_per_second": speed, "mfu": None}
        config = text_config(self._trainee.model)
        width = config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        active = self._trainee.active_parameters(shares)
        flops = flops_per_token(active, config.num_hidden_layers, width, self._length)
        return {"tokens_per_second": speed, "mfu": speed * flops / (self._peak * self._processes)}
