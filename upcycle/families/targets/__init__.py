"""Mixtures of experts that stock transformers has, a file each; `TARGETS` finds one by its `model_type`."""

from collections.abc import Mapping
from types import MappingProxyType

from upcycle.families.targets.granitemoeshared import GRANITEMOESHARED
from upcycle.families.targets.mixtral import MIXTRAL
from upcycle.families.targets.qwen2_moe import QWEN2_MOE
from upcycle.families.targets.qwen3_moe import QWEN3_MOE
from upcycle.families.targets.target import Target

TARGETS: Mapping[str, Target] = MappingProxyType(
    {each.model_type: each for each in (MIXTRAL, QWEN3_MOE, GRANITEMOESHARED, QWEN2_MOE)}
)
"""By `model_type`."""

DEFAULT_COMPACT = "granitemoeshared"
"""What `merge --to compact` writes unless another is named: other readers are right about it, too."""
