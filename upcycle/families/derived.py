"""Config fields that a dense class makes of others when it reads its config: data for `Dense.derived`."""

from collections.abc import Callable, Mapping
from typing import Any

Derived = Callable[[Mapping[str, Any]], Any]
"""The value of a field, from a config that has the class's defaults; None where the others make no sense."""

MAX_LAYERS = 100_000
"""Layers that a list is made for: a config may claim any number."""


def one_in(field: str, default: int, rare: str, common: str) -> Derived:
    """Return how `layer_types` follows from `field`: of every so many layers the last is `rare`, the others `common`.

    `default` is the class's default of `field`; a list that the config has stands.
    """

    def layer_types(config: Mapping[str, Any]) -> Any:
        given, step = config.get("layer_types"), config.get(field, default)
        if given is not None or type(step) is not int or step < 1:
            return given
        return [common if (layer + 1) % step else rare for layer in range(layers_of(config))]

    return layer_types


def layers_of(config: Mapping[str, Any]) -> int:
    """Return the number of layers; 0 where the config's number is none."""
    layers = config["num_hidden_layers"]
    return layers if type(layers) is int and 0 < layers <= MAX_LAYERS else 0
