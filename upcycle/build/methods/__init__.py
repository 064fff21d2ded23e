"""The ways of making experts, a file each: `methods/NAME.py` holds the function NAME, and `method_of` finds it."""

from importlib import import_module
from typing import cast

from upcycle.build.experts import Method


def method_of(name: str) -> Method:
    """Return the method called `name`: a choice of `--method`, or a kind of adapter experts that can be merged."""
    return cast(Method, getattr(import_module(f"{__name__}.{name}"), name))
