"""Finds the routers of a transformers model and records what they decide while it runs.

A router is the module beside `experts` in a sparse block whose call gives (logits, weights, chosen experts): so it is
in every mixture of experts of transformers that upcycle knows, whatever its scoring is. A forward hook sees what the
experts see, and the logits keep their gradient; nothing of the model is replaced. Layers with adapter experts name the
router and the experts that count, those of the active adapter (`upcycle.adapters.layers`).

Shapes: L layers, T tokens, E experts, K top-k, D hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from upcycle.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Router:
    """The router of one layer, and its experts."""

    name: str  # of the router module in the model
    module: nn.Module
    experts_name: str
    experts: nn.Module

    @property
    def weight(self) -> nn.Parameter:
        """Its matrix `(E, D)`."""
        return _matrix(self.module)

    @property
    def layer(self) -> int:
        """The number of the layer in the model: the first number in the name; layers without experts count too."""
        return int(next((part for part in self.name.split(".") if part.isdigit()), 0))


@dataclass(frozen=True, slots=True)
class Routing:
    """What one router decided for the tokens of one forward pass."""

    logits_TE: Tensor  # raw, with gradient
    weights_TK: Tensor  # with which the experts' outputs are added
    chosen_TK: Tensor  # int64


@runtime_checkable
class RoutedLayer(Protocol):
    """A layer that names its routers itself; a module."""

    def routed(self) -> Sequence[tuple[str, str]]:
        """Return the names, from here on, of each router that counts and its experts."""


def find_routers(model: nn.Module) -> list[Router]:
    """Return the routers of `model` in the order of its layers; none for a dense model.

    Of adapter experts they are those of the active adapter; layers without any have none.
    Raises UnsupportedError for a block with experts and no router that is known.
    """
    found = []
    for name, block in model.named_modules():
        if isinstance(block, RoutedLayer):
            found += [_named(model, f"{name}.{router}", f"{name}.{experts}") for router, experts in block.routed()]
            continue
        experts = getattr(block, "experts", None)
        if not isinstance(experts, nn.Module):
            continue
        beside = [(child, module) for child, module in block.named_children() if _is_router(module)]
        if len(beside) != 1:
            raise UnsupportedError(
                "cannot find the router beside `experts`", where=name, found=f"{len(beside)} candidates",
                expected="one module whose class name ends in Router or Gate",
            )  # fmt: skip
        child, module = beside[0]
        here = f"{name}." if name else ""
        found.append(Router(f"{here}{child}", module, f"{here}experts", experts))
    return found


def _named(model: nn.Module, router: str, experts: str) -> Router:
    return Router(router, model.get_submodule(router), experts, model.get_submodule(experts))


def _matrix(router: nn.Module) -> nn.Parameter:
    return next(parameter for parameter in router.parameters() if parameter.ndim == 2)


def _is_router(module: nn.Module) -> bool:
    """transformers calls them ...TopKRouter, ...TopkRouter, ...Router and, in Hunyuan, ...Gate; a gate of a shared
    expert is a plain linear layer.
    """
    return type(module).__name__.endswith(("Router", "Gate"))


@dataclass
class Recorder:
    """Keeps what the routers decide during `recording`, and nothing at other times.

    Gradient checkpointing runs layers a second time, within the backward pass: that is not recorded.
    """

    routers: list[Router]
    seen: list[Routing] = field(default_factory=list)
    _on: bool = False

    def __post_init__(self) -> None:
        """Hook every router."""
        self._hooks = [hook for router in self.routers for hook in watch(router.module, self._keep)]

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def recording(self) -> Iterator[list[Routing]]:
        """Yield the list that what comes by is added to, layer by layer."""
        self.seen, self._on = [], True
        try:
            yield self.seen
        finally:
            self._on = False

    def _keep(self, routing: Routing) -> None:
        if self._on:
            self.seen.append(routing)


LOGITS_OF = {"Gemma4TextRouter": "proj"}
"""Class of a router that returns probabilities in the place of logits -> its module that puts the logits out."""


def watch(router: nn.Module, see: Callable[[Routing], None]) -> list[RemovableHandle]:
    """Call `see` with what `router` decides whenever it runs; return the hooks.

    Such a run raises UnsupportedError for a router that does not return what stock routers do.
    """
    logits: list[Tensor] = []

    def decided(module: nn.Module, _inputs: Any, output: Any) -> None:
        see(_read(module, (logits[-1], *output[1:]) if logits else output))
        logits.clear()

    hooks = [router.register_forward_hook(decided)]
    classes = {of.__name__ for of in type(router).__mro__}  # FSDP makes a class of its own of each
    for child in (LOGITS_OF[name] for name in LOGITS_OF if name in classes):
        module = router.get_submodule(child)
        hooks.append(module.register_forward_hook(lambda _module, _inputs, output: logits.append(output)))
    return hooks


def _read(module: nn.Module, output: Any) -> Routing:
    known = isinstance(output, tuple) and len(output) == 3 and all(isinstance(given, Tensor) for given in output)
    if known and not output[0].is_floating_point():
        output = output[::-1]  # GraniteMoe in transformers 5.17
    if not known or output[2].is_floating_point():
        raise UnsupportedError(
            "the router does not return what stock routers do",
            where=type(module).__name__,
            expected="logits, weights and chosen experts",
        )
    return Routing(*output)


def softmax_scores(logits_TE: Tensor) -> Tensor:
    """Return probabilities `(..., E)`, float32, of a softmax router."""
    return torch.softmax(logits_TE.float(), dim=-1)


def sigmoid_scores(logits_TE: Tensor) -> Tensor:
    """Return a sigmoid router's affinities `(..., E)`, float32, made to sum to one (2412.19437, eq. 18 and 19)."""
    scores_TE = logits_TE.float().sigmoid()
    return scores_TE / scores_TE.sum(-1, keepdim=True)


SCORES = {"softmax": softmax_scores, "sigmoid": sigmoid_scores}
"""How a router makes probabilities of logits."""


@torch.no_grad()
def scoring_of_router(router: nn.Module) -> str:
    """Return which of `SCORES` a router uses, asked by hidden states of its own size and weights that tell; where they
    do not, as of one that chooses a single expert, softmax. The router is as it was afterwards.
    """
    matrix = _matrix(router)
    kept, draw = matrix.clone(), torch.Generator().manual_seed(0)
    matrix.copy_(torch.randn(matrix.shape, generator=draw) * 2 / matrix.shape[1] ** 0.5)  # logits of a spread of 2
    hidden_TD = torch.randn(64, matrix.shape[1], generator=draw).to(matrix)
    biases = [matrix.new_zeros(len(matrix))] * (len(signature(router.forward).parameters) - 1)
    try:
        return scoring_of(_read(router, router.forward(hidden_TD, *biases))) or "softmax"
    finally:
        matrix.copy_(kept)


@torch.no_grad()
def scoring_of(routing: Routing) -> str | None:
    """Return which of `SCORES` the router uses, read off the weights that it gave; None where they do not tell.

    Whatever a router does to its scores afterwards, within a token it leaves their proportions as they were.
    """
    if routing.chosen_TK.shape[-1] == 1:
        return None
    fitting = []
    for name, scores in SCORES.items():
        ratio_TK = scores(routing.logits_TE).gather(-1, routing.chosen_TK) / routing.weights_TK.float().clamp(min=1e-12)
        if ((ratio_TK / ratio_TK[:, :1] - 1).abs() < 0.05).all():  # bf16 weights have three digits
            fitting.append(name)
    return fitting[0] if len(fitting) == 1 else None
