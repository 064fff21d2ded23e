"""How an expert is made from the dense FFN: a method is a function that yields the source of one tensor."""

from collections.abc import Callable, Mapping

from upcycle.checkpoint.header import TensorSpec
from upcycle.plan.sources import Copy, Noise, Source, random_key
from upcycle.requests import Conversion, Method


def copied(spec: TensorSpec, target: str, request: Conversion) -> Source:
    """Sparse upcycling (2212.05055, section 2.1): every expert is a copy of the dense FFN, with noise if asked for."""
    if request.noise == 0:
        return Copy(spec)
    return Noise(spec, request.noise, random_key(request.seed, target))


METHODS: Mapping[Method, Callable[[TensorSpec, str, Conversion], Source]] = {"copy": copied}
"""By name: (dense tensor, output name, request) -> source."""


def is_exact(request: Conversion) -> bool:
    """Whether the method leaves the function unchanged: identical experts, and weights that sum to one."""
    return request.method == "copy" and request.noise == 0
