"""Finds the weight, module or gradient that a NaN or infinity came from, after a step that had one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def find_nonfinite(model: nn.Module, forward: Callable[[], Any]) -> str:
    """Return in words where the first NaN or infinity is: a weight, else a module's output, else a gradient.

    `forward` runs the model on what it failed on. Modules are asked in the order in which they run, gradients in the
    opposite order, in which they are computed. Says that there is none where that is so.
    """
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return f"the weight {name}"
    with torch.no_grad(), _watching(model) as found:
        forward()
    if found:
        return f"the output of {found[0]}"
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not _is_finite(parameter.grad):
            return f"the gradient of {name}"
    return "no single weight, output or gradient: a sum of them is too large"


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[str]]:
    """Yield the names of the modules that give what is not finite, those inside others first."""
    found: list[str] = []
    handles = []
    for name, module in model.named_modules():

        def look(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            if not all(_is_finite(one) for one in outputs if isinstance(one, Tensor)):
                found.append(name)

        handles.append(module.register_forward_hook(look))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
