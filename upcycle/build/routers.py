"""How routers start: each way is a function from a layer's place and statistics to the source of a matrix `(E, D)`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from upcycle.checkpoint.header import TensorSpec
from upcycle.errors import RequestError
from upcycle.families.targets.target import Target
from upcycle.plan.sources import Normal, Source, Zeros
from upcycle.requests import Conversion


@dataclass(frozen=True, slots=True)
class RouterSlot:
    """One layer's router."""

    layer: int
    experts: int
    hidden: int
    key: str  # of the random stream for its values
    statistics: Mapping[str, TensorSpec] = field(default_factory=dict)  # what a run of the dense model measured


def normal(slot: RouterSlot, asked: Conversion) -> Source:
    """Return values drawn from `N(0, router_std^2)` (2212.05055 uses .02)."""
    return Normal(asked.router_std, slot.key) if asked.router_std else Zeros()


def zeros(_slot: RouterSlot, _asked: Conversion) -> Source:
    """Return zeros: every token ties, and the first experts get it."""
    return Zeros()


ROUTERS: Mapping[str, Callable[[RouterSlot, Conversion], Source]] = MappingProxyType({"normal": normal, "zeros": zeros})
"""Of `upcycle convert --router`."""


def check_router_can_learn(target: Target, request: Conversion) -> None:
    """Raise RequestError for a router without gradient: with one expert per token, a renormalised weight is 1."""
    if target.router.renormalises and request.top_k == 1 and not request.allow_dead_router:
        raise RequestError(
            f"the router would never learn: {target.model_type} divides the weights of the chosen experts by their "
            "sum, so with one expert per token the weight is 1 whatever the router says, and its gradient is zero",
            found="--top-k 1",
            expected="--top-k 2 or more",
            hint="--allow-dead-router converts all the same",
        )


def router_warning(request: Conversion) -> str | None:
    """Return a sentence about a router that starts badly, or None."""
    if request.experts > request.top_k and (request.router == "zeros" or request.router_std == 0):
        return (
            "routers of zeros tie on every token, and ties go to the first experts: the others stay unused until a "
            "balance loss moves the router"
        )
    return None
