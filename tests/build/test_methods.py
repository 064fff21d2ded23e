"""Every choice of a user leads to a method or router start that is there."""

from typing import get_args

from upcycle.build.adapter_experts import Kind
from upcycle.build.methods import method_of
from upcycle.build.routers import ROUTERS
from upcycle.requests import Method, RouterInit


def test_every_method_has_its_file() -> None:
    for name in (*get_args(Method), *(kind for kind in get_args(Kind) if kind != "pesc")):  # pesc cannot be merged
        assert method_of(name).__name__ == name


def test_every_router_start_has_its_function() -> None:
    assert set(get_args(RouterInit)) == set(ROUTERS)
