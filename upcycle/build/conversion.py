"""From a checkpoint and a request to the plan of a conversion."""

from upcycle.build.builder import Order, build_plan
from upcycle.build.methods import METHODS
from upcycle.build.routers import ROUTERS, check_router_can_learn
from upcycle.build.side_files import side_files
from upcycle.checkpoint.reader import Checkpoint
from upcycle.families.match import match
from upcycle.plan.plan import Plan
from upcycle.plan.sources import Copy
from upcycle.requests import Conversion


def plan_conversion(checkpoint: Checkpoint, request: Conversion) -> Plan:
    """Return the whole plan of converting `checkpoint`.

    Raises CheckpointError, UnsupportedError or RecipeError for all that would go wrong, before a byte is written.
    """
    matched = match(checkpoint, request.ignore_config)
    check_router_can_learn(matched.target, request)
    order = Order(
        experts=lambda ffn, slot: METHODS[request.method](ffn, slot, request),
        count=request.experts,
        top_k=request.top_k,
        router=lambda slot: ROUTERS[request.router](slot, request),
        carried=Copy,
        seed=request.seed,
        dtype=request.dtype,
        shard_bytes=request.shard_bytes(),
        files=side_files(checkpoint.directory, request),
        headers=checkpoint.headers,
    )
    return build_plan(checkpoint, matched, order)
