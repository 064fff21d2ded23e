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
    from upcycle.errors import InputError as InputError
    from upcycle.errors import UpcycleError as UpcycleError
    from upcycle.pipeline.stages import run as run
    from upcycle.requests.commands import *  # noqa: F403

# No function is named like a subpackage (convert, plan): importing the subpackage would replace it.
_BESIDE = {"run": "upcycle.pipeline.stages", "InputError": "upcycle.errors", "UpcycleError": "upcycle.errors"}
"""What the API has besides requests -> the module that holds it."""


def __getattr__(name: str) -> Any:
    if name in _BESIDE:
        return getattr(import_module(_BESIDE[name]), name)
    if name[:1].isupper() or name == "__all__":
        from upcycle.requests.commands import COMMANDS

        requests = {command.request.__name__: command.request for command in COMMANDS.values()}
        if name == "__all__":
            return [*_BESIDE, *requests]
        if name in requests:
            return requests[name]
    raise AttributeError(f"module 'upcycle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
