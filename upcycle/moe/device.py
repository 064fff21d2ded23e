"""The device that a model runs on, and the widest numbers it has."""

import torch

from upcycle.errors import InputError


def find_device(name: str) -> torch.device:
    """Return the device called `name`; auto is the first accelerator that is there, else the CPU.

    Raises InputError when there is no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # refuses the meta device too
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            "no such device", found=name, expected=f"auto, cpu{f' or {accelerator}' if accelerator else ''}"
        ) from error
    return device


def wide(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type that a device has: float64, but float32 on MPS."""
    return torch.float32 if device.type == "mps" else torch.float64
