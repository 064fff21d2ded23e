"""peft's tuner for adapter experts: puts them into a model of transformers and draws how they start."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Generator, Tensor, nn
from transformers import CONFIG_MAPPING

import upcycle
from upcycle.adapters.config import ExpertsConfig, spread_over_depth
from upcycle.adapters.layers import AdapterLayer, ExpertsLayer, LowRankLayer
from upcycle.checkpoint.digest import seed_from
from upcycle.errors import UnsupportedError
from upcycle.families.base import row_of
from upcycle.moe.adapters import (
    AdapterRouter,
    BottleneckExperts,
    Experts,
    Ia3Experts,
    LoraExperts,
    LoraUpdate,
    PescExperts,
    Scoring,
)

PREFIX = "upcycle_"

EXPERTS: dict[str, Any] = {
    "lora": lambda count, hidden, width, config: LoraExperts(
        count, hidden, width, config.rank, scaling=config.scaling, shared_a=config.shared_a, gated=config.modules.gated
    ),
    "bottleneck": lambda count, hidden, _width, config: BottleneckExperts(
        count, hidden, config.rank, scaling=config.scaling, gated=config.modules.gated
    ),
    "pesc": lambda count, hidden, _width, config: PescExperts(count, hidden, config.rank, scaling=config.scaling),
    "ia3": lambda count, _hidden, width, _config: Ia3Experts(count, width),
}
"""Type of experts -> (experts, hidden size, width of the FFN, config) -> module."""


class ExpertsModel(BaseTuner):
    """A model with adapter experts; made by `peft.get_peft_model`."""

    prefix = PREFIX
    tuner_layer_cls = AdapterLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - peft's name; the families have the names

    def _prepare_adapter_config(self, peft_config: ExpertsConfig, model_config: dict[str, Any]) -> ExpertsConfig:
        if peft_config.ffn is None or peft_config.attention is None:
            try:
                names = row_of(model_config).modules
            except UnsupportedError as error:
                raise ValueError(str(error)) from None
            peft_config.ffn = peft_config.ffn or names.ffn
            peft_config.attention = list(names.attention) if peft_config.attention is None else peft_config.attention
        attention = (peft_config.attention or []) if peft_config.attention_rank else []
        peft_config.target_modules = [peft_config.ffn["block"], *attention]
        peft_config.num_experts = spread_over_depth(peft_config.counts, _layer_count(model_config))
        peft_config.upcycle_version = upcycle.__version__
        return peft_config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,  # noqa: ARG002 - peft's signature
    ) -> None:
        add = _added_experts if _is_ffn(current_key, peft_config) else _added_update
        layer = add(peft_config, adapter_name, target, current_key)
        if layer is None:  # a layer without experts
            return
        if adapter_name not in self.active_adapters:
            for modules in (getattr(layer, name) for name in layer.adapter_layer_names):
                modules[adapter_name].requires_grad_(False)
        if layer is not target:
            setattr(parent, target_name, layer)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:  # noqa: ARG002
        """Put the base's own module back, for `unload`; peft's would look for a weight in an FFN."""
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_args: Any, **kwargs: Any) -> Iterator[None]:
        """Raise ValueError for a batch of several adapters, whose names peft would drop."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError("adapters of experts cannot be mixed in one batch; set_adapter chooses one")
        yield

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: ExpertsConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """As peft's; raises ValueError where the file lacks a tensor of the adapter, which would stay random."""
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        missing = [name for name in _tensor_names(model, adapter_name) if name not in remapped]
        if missing:
            raise ValueError(f"the adapter lacks {len(missing)} tensors, such as {missing[0]}; it cannot be loaded")
        return remapped


def _tensor_names(model: nn.Module, adapter_name: str) -> list[str]:
    """The names of all tensors of an adapter in `model`."""
    names = []
    for path, layer in model.named_modules():
        if isinstance(layer, AdapterLayer):
            for kind in layer.adapter_layer_names:
                modules = getattr(layer, kind)
                if adapter_name in modules:
                    names += [f"{path}.{kind}.{adapter_name}.{leaf}" for leaf in modules[adapter_name].state_dict()]
    return names


def _is_ffn(key: str, config: ExpertsConfig) -> bool:
    assert config.ffn is not None  # noqa: S101
    return f".{key}".endswith(f".{config.ffn['block']}")


def _layer_count(model_config: dict[str, Any]) -> int:
    """Return the number of layers, which some configs call otherwise."""
    model_type = str(model_config.get("model_type"))
    called = CONFIG_MAPPING[model_type].attribute_map if model_type in CONFIG_MAPPING else {}
    name = called.get("num_hidden_layers", "num_hidden_layers")
    return int(model_config[name])


def _layer_number(key: str) -> int:
    return int(next(part for part in key.split(".") if part.isdigit()))


def _added_experts(config: ExpertsConfig, name: str, target: nn.Module, key: str) -> ExpertsLayer | None:
    count = config.counts[_layer_number(key)]
    if not count:
        return None
    layer = _wrapped(target, config, key)
    hidden, width = _shape(layer.ffn.down)
    router = AdapterRouter(count, hidden, cast("Scoring", config.routing), config.top_k)
    router.balance_coef, router.z_coef = config.balance_coef, config.z_coef
    experts: Experts = EXPERTS[config.expert_type](count, hidden, width, config)
    if config.router == "normal":
        _draw(router, partial(nn.init.normal_, router.weight, std=config.router_std), config, f"{key}.router")
    _draw(experts, experts.draw, config, f"{key}.experts")
    device = _device(layer.ffn.down)
    layer.add(name, router.to(device), experts.to(device))
    return layer


def _added_update(config: ExpertsConfig, name: str, target: nn.Module, key: str) -> LowRankLayer:
    layer = target if isinstance(target, LowRankLayer) else LowRankLayer(target)
    outputs, inputs = _shape(layer.base_layer)
    update = LoraUpdate(inputs, outputs, config.attention_rank, scaling=config.attention_scaling)
    _draw(update, update.draw, config, key)
    layer.add(name, update.to(_device(layer.base_layer)))
    return layer


def _wrapped(block: nn.Module, config: ExpertsConfig, key: str) -> ExpertsLayer:
    """Return an FFN as a layer for experts; raise ValueError where it has other parts than the config names."""
    if isinstance(block, ExpertsLayer):
        return block
    names = config.modules
    inside = [name.removeprefix(f"{names.block}.") for name in names.linear]
    try:
        layer = ExpertsLayer(block, names)
    except AttributeError as error:
        raise ValueError(f"{key} is no FFN with {', '.join(inside)} and {names.act} ({error})") from None
    others = [name for name, part in block.named_children() if name not in (*inside, names.act) and _has_weights(part)]
    if others:
        raise ValueError(f"{key} computes with {', '.join(others)} too, which experts would leave out")
    return layer


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _shape(module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer, whatever holds its weight."""
    return int(cast("Any", module).out_features), int(cast("Any", module).in_features)


def _device(module: nn.Module) -> torch.device:
    """Where an adapter of a linear layer belongs: beside its weight, and on the CPU where that is not there yet."""
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def _draw(module: nn.Module, draw: Any, config: ExpertsConfig, key: str) -> None:
    """Draw a module's start, keyed by seed and name; on the meta device there is nothing to draw."""
    if all(parameter.device.type != "meta" for parameter in module.parameters()):
        draw(generator=Generator().manual_seed(seed_from(f"{config.seed}:{key}")))
