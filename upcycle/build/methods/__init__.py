"""The ways of making experts, a file each."""

from collections.abc import Mapping
from types import MappingProxyType

from upcycle.build.experts import Method
from upcycle.build.methods.bottleneck import bottleneck
from upcycle.build.methods.copy import copy
from upcycle.build.methods.ia3 import ia3
from upcycle.build.methods.lora import lora

METHODS: Mapping[str, Method] = MappingProxyType({"copy": copy})
"""Of `upcycle convert --method`: each is asked for by a `requests.Conversion`."""

ADAPTED: Mapping[str, Method] = MappingProxyType({"lora": lora, "ia3": ia3, "bottleneck": bottleneck})
"""Kinds of adapter experts that can be merged: each is asked for by the `AdapterExperts` that holds them."""
