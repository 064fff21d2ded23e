"""Turn a dense language model into a mixture of experts.

    from upcycle import Convert, Verify, convert, verify

    convert(Convert(model="SmolLM2-135M", out="moe", experts=8, top_k=2))
    verify(Verify(dense="SmolLM2-135M", moe="moe"))

Every command is a function of the same name that takes its request, a dataclass of `upcycle.recipe`; what it needs is
imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from upcycle.pipeline.stages import convert, generate, plan, verify
    from upcycle.recipe import Convert, Generate, Plan, Verify

_STAGES = ("convert", "generate", "plan", "verify")
_REQUESTS = ("Convert", "Generate", "Plan", "Verify")

__all__ = ["Convert", "Generate", "Plan", "Verify", "__version__", "convert", "generate", "plan", "verify"]


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        return getattr(import_module("upcycle.pipeline.stages"), name)
    if name in _REQUESTS:
        return getattr(import_module("upcycle.recipe"), name)
    raise AttributeError(f"module 'upcycle' has no attribute {name!r}")
