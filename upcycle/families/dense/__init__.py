"""Dense models, a file each; `DENSE` finds one by its `model_type`."""

from collections.abc import Mapping
from types import MappingProxyType

from upcycle.families.dense.dense import Dense
from upcycle.families.dense.llama import LLAMA
from upcycle.families.dense.mistral import MISTRAL
from upcycle.families.dense.phi3 import PHI3
from upcycle.families.dense.qwen3 import QWEN3

DENSE: Mapping[str, Dense] = MappingProxyType({each.model_type: each for each in (LLAMA, MISTRAL, QWEN3, PHI3)})
"""By `model_type`."""
