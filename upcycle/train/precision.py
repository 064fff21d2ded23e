"""Keeps routers in float32 inside a model in bfloat16: selective precision (2101.03961, section 2.4).

A router's softmax amplifies rounding: logits that differ in their third digit choose other experts. A float32 router
costs next to nothing, E x D weights a layer. Stock routers are left as they are; their weights are widened in place,
and hooks cast what they read and give. The combine weights get the data type in which the stock router gives them, so
that the experts compute as they do in stock transformers.
"""

from collections.abc import Iterable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.errors import UnsupportedError

STORED_AS = "stored_dtypes"
"""Attribute of a widened router: name of parameter or buffer -> data type in checkpoints. A copy of it has it too."""


def keep_routers_fp32(routers: Iterable[nn.Module]) -> None:
    """Hold the parameters of stock routers in float32, and let them compute in it; those that do are left alone.

    A router takes hidden states, and perhaps a bias `(E,)`; its first matrix is `(E, D)`; it returns logits `(T, E)`,
    combine weights `(T, K)` and indices. The logits stay float32. Parameters stay the same objects under the same
    names. To be called once the model has its data type, and before an optimizer is made or the model is compiled.
    Raises UnsupportedError for a module of another kind.
    """
    for router in routers:
        dtypes = {name: tensor.dtype for name, tensor in _tensors(router) if _is_narrow(tensor)}
        if dtypes:
            weights_dtype = _weights_dtype(router)
            router.float()
            vars(router)[STORED_AS] = dtypes
            _hook(router, weights_dtype)


def state_for_saving(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of `model` with its routers in the data type of checkpoints, for `save_pretrained(state_dict=)`.

    What is rounded here is kept by the optimizer's state as `<parameter>:master`.
    """
    state = dict(model.state_dict())
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, dtype in vars(module).get(STORED_AS, {}).items():
            path = f"{prefix}.{name}".removeprefix(".")
            if path in state:
                state[path] = state[path].to(dtype)
    return state


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize < torch.float32.itemsize


@torch.no_grad()
def _weights_dtype(router: nn.Module) -> torch.dtype:
    """The data type of the weights that the router gives the experts: the model's in some families, float32 in others.

    Asked of the router itself, by one token of zeros; `forward` passes by the hooks of those who record routing.
    """
    kind = type(router).__name__
    matrix = next((parameter for parameter in router.parameters() if parameter.ndim == 2), None)
    if matrix is None:
        raise UnsupportedError(f"{kind} is no stock router: it has no matrix")
    experts, hidden = matrix.shape
    biases = [matrix.new_zeros(experts)] * (len(signature(router.forward).parameters) - 1)
    given = router.forward(matrix.new_zeros(1, hidden), *biases)
    if not isinstance(given, tuple) or len(given) != 3:
        raise UnsupportedError(f"{kind} is no stock router: it does not return logits, weights and indices")
    dtype: torch.dtype = given[1].dtype
    return dtype


def _hook(router: nn.Module, weights_dtype: torch.dtype) -> None:
    def widen(_router: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return tuple(map(_float, args)), {name: _float(value) for name, value in kwargs.items()}

    def narrow(_router: nn.Module, _args: Any, output: Any) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE, weights_TK, chosen_TK = output
        return logits_TE, weights_TK.to(weights_dtype), chosen_TK

    router.register_forward_pre_hook(widen, with_kwargs=True)
    router.register_forward_hook(narrow, prepend=True)  # those who record see what the experts get


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
