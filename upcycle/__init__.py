"""Turn a dense language model into a mixture of experts.

    from upcycle import Convert, Verify, run

    run(Convert(model="SmolLM2-135M", out="moe", experts=8, top_k=2))
    assert run(Verify(dense="SmolLM2-135M", moe="moe")).passed

A command is a request, a dataclass of `upcycle.requests` with the options of the command line; `run` carries it out and
raises InputError where the command line would exit with 2, UpcycleError where with 1.
What that needs is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from upcycle.errors import InputError, UpcycleError
    from upcycle.pipeline.stages import run
    from upcycle.requests import Attach, Convert, Generate, Merge, Plan, Plot, Push, Train, Verify

# No function is named like a subpackage (convert, plan): importing the subpackage would replace it.
_API = {
    "run": "upcycle.pipeline.stages",
    "Attach": "upcycle.requests",
    "Convert": "upcycle.requests",
    "Generate": "upcycle.requests",
    "InputError": "upcycle.errors",
    "UpcycleError": "upcycle.errors",
    "Merge": "upcycle.requests",
    "Plan": "upcycle.requests",
    "Plot": "upcycle.requests",
    "Push": "upcycle.requests",
    "Train": "upcycle.requests",
    "Verify": "upcycle.requests",
}

__all__ = [
    "Attach", "Convert", "Generate", "InputError", "Merge", "Plan", "Plot", "Push", "Train", "UpcycleError", "Verify",
    "__version__", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(import_module(_API[name]), name)
    raise AttributeError(f"module 'upcycle' has no attribute {name!r}")
