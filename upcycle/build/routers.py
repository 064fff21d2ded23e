"""How a router starts, and which settings keep it from ever learning."""

from upcycle.errors import RecipeError
from upcycle.families.family import Family
from upcycle.plan.sources import Normal, Source, Zeros, random_key
from upcycle.requests import Conversion


def initial_router(target: str, request: Conversion) -> Source:
    """Return the source of a router weight `(E, D)`: `N(0, router_std^2)` (2212.05055 uses .02) or zeros."""
    if request.router == "zeros" or request.router_std == 0:
        return Zeros()
    return Normal(request.router_std, random_key(request.seed, target))


def check_router_can_learn(family: Family, request: Conversion) -> None:
    """Raise RecipeError for a router without gradient: with one expert per token, a renormalised weight is 1."""
    if family.renormalises and request.top_k == 1 and not request.allow_dead_router:
        raise RecipeError(
            f"the router would never learn: {family.moe} divides the weights of the chosen experts by their sum, "
            "so with one expert per token the weight is 1 whatever the router says, and its gradient is zero",
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
