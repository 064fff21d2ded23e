"""Layers that peft puts in the place of an FFN or a linear layer, around the modules of `upcycle.moe.adapters`."""

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN

from upcycle.families.dense.dense import Modules
from upcycle.moe.adapters import AdapterRouter, Experts, Ffn, LoraUpdate


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Wraps a module of the base model, which stays as it is."""

    def __init__(self, base_layer: nn.Module) -> None:
        """Wrap a module without any adapter yet."""
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def active(self, modules: nn.ModuleDict) -> str | None:
        """Return the adapter that counts in this layer, if any; raise ValueError for several at once."""
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in modules]
        if len(names) > 1:
            raise ValueError(f"one adapter of experts can be active at a time, found {', '.join(names)}")
        return names[0] if names else None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise NotImplementedError: a dense layer cannot hold experts."""
        raise NotImplementedError("experts cannot be merged into a dense model; `upcycle merge` makes a MoE of them")


class ExpertsLayer(AdapterLayer):
    """The FFN of a layer with a router and experts for every adapter."""

    adapter_layer_names = ("upcycle_router", "upcycle_experts")

    def __init__(self, base_layer: nn.Module, modules: Modules) -> None:
        """Wrap an FFN with the parts that `modules` names. Raises AttributeError where it has others."""
        super().__init__(base_layer)
        self.names = modules
        self.upcycle_router = nn.ModuleDict()
        self.upcycle_experts = nn.ModuleDict()
        _ = self.ffn

    @property
    def ffn(self) -> Ffn:
        """The parts of the base layer as they are now: another adapter may have wrapped one of them meanwhile."""
        block, names = self.base_layer, self.names
        linear = {part: getattr(names, part) for part in ("gate", "up", "down", "gate_up")}
        inside = {part: name.removeprefix(f"{names.block}.") for part, name in linear.items() if name is not None}
        found: dict[str, Any] = {part: block.get_submodule(name) for part, name in inside.items()}
        dropout = 0.0 if names.dropout is None else _probability(getattr(block, names.dropout))
        act = getattr(block, names.act) if names.act not in ACT2FN or hasattr(block, names.act) else ACT2FN[names.act]
        return Ffn(block, act=act, dropout=dropout, **{"gate": None, "up": None, **found})

    def routed(self) -> list[tuple[str, str]]:
        """Return router and experts of the active adapter, named from here on; none while there is no such adapter."""
        name = self.active(self.upcycle_router)
        return [] if name is None else [(f"upcycle_router.{name}", f"upcycle_experts.{name}")]

    def add(self, name: str, router: AdapterRouter, experts: Experts) -> None:
        """Give the layer the experts of an adapter."""
        self.upcycle_router[name], self.upcycle_experts[name] = router, experts

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what the active adapter's experts make of `x`, or what the base layer does."""
        name = self.active(self.upcycle_router)
        if name is None:
            output: Tensor = self.base_layer(x, *args, **kwargs)
            return output
        _, weights_TK, chosen_TK = self.upcycle_router[name](x.flatten(0, -2))
        mixed: Tensor = self.upcycle_experts[name](x, weights_TK, chosen_TK, self.ffn)
        return mixed


def _probability(dropout: Any) -> float:
    """Return the probability of a dropout that is a number or a module."""
    return float(dropout.p if isinstance(dropout, nn.Dropout) else dropout)


class LowRankLayer(AdapterLayer):
    """A linear layer of the attention with a plain LoRA for every adapter."""

    adapter_layer_names = ("upcycle_lora",)

    def __init__(self, base_layer: nn.Module) -> None:
        """Wrap a linear layer."""
        super().__init__(base_layer)
        self.upcycle_lora = nn.ModuleDict()

    def add(self, name: str, update: LoraUpdate) -> None:
        """Give the layer the update of an adapter."""
        self.upcycle_lora[name] = update

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what the base layer does, and what the active adapter adds."""
        output: Tensor = self.base_layer(x, *args, **kwargs)
        name = self.active(self.upcycle_lora)
        return output if name is None else output + self.upcycle_lora[name](x)
