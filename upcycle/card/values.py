"""Reads a value of a file as the kind that is wanted, or as nothing: a file may hold anything."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB_ID, _BARE_ID = re.compile(f"{_NAME}/{_NAME}", re.ASCII), re.compile(_NAME, re.ASCII)


class Origin(NamedTuple):
    """The model that something was made from, as far as a record names it."""

    base: str | None = None  # its id on the Hub
    revision: str | None = None  # its commit there
    name: str | None = None  # what the record calls it: an id, or a directory's name


def at(value: object, *path: str) -> Any:
    """Return what an object holds under a name, or of objects inside one another; None where it holds no such thing."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def whole(value: object) -> int | None:
    """Return a whole number from 0 to 10**18; None for anything else."""
    return value if type(value) is int and 0 <= value < 10**18 else None


def real(value: object) -> float | None:
    """Return a finite number, below 1e30 in size; None for anything else."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e30 else None  # type: ignore[arg-type]


def items(value: object) -> list[Any]:
    """Return a list; an empty one for anything else."""
    return value if isinstance(value, list) else []


def texts(value: object) -> list[str]:
    """Return a text, or those of a list, as a list; an empty one for anything else."""
    return [item for item in (items(value) or [value]) if isinstance(item, str)]


def hub_id(name: object, revision: object = None) -> str | None:
    """Return `name` if it can be the id of a repository on the Hub, else None.

    An id is `owner/name`. One without an owner, such as `gpt2`, could be a directory: it counts only with a commit.
    """
    known = isinstance(name, str) and (_HUB_ID.fullmatch(name) or (revision and _BARE_ID.fullmatch(name)))
    return known[0] if known and ".." not in known[0] and "--" not in known[0] else None


def commit(revision: object) -> str | None:
    """Return the name of a commit or branch; None for anything else."""
    return revision if isinstance(revision, str) and _BARE_ID.fullmatch(revision) else None


def origin(entry: Mapping[str, Any]) -> Origin:
    """Return the model that an entry of a lineage started from."""
    source = at(entry, "source")
    name = source["name"] if "name" in (source or ()) else at(entry, "recipe", "model")
    revision = at(source, "revision")
    return Origin(hub_id(name, revision), commit(revision), name if isinstance(name, str) else None)
