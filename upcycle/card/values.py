"""Values out of files, which may hold anything: of the kind that is wanted, or nothing."""

import re
from collections.abc import Mapping
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_BARE_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def whole(value: object) -> int | None:
    """Return a whole number that a file may hold, 0 or more; None for anything else."""
    return value if type(value) is int and 0 <= value < 10**18 else None


def real(value: object) -> float | None:
    """Return a finite number that a file may hold; None for anything else."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e30 else None  # type: ignore[arg-type]


def mapping(value: object) -> Mapping[str, Any]:
    """Return an object that a file may hold; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def texts(value: object) -> list[str]:
    """Return a text, or those of a list, as a list; an empty one for anything else."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]


def hub_id(name: object, revision: object = None) -> str | None:
    """Return `name` if it is the id of a repository on the Hub.

    A directory's own name has no slash; with a commit, a name without one is one of the Hub's oldest models.
    """
    if not isinstance(name, str):
        return None
    known = _HUB_ID.fullmatch(name) or (revision and _BARE_ID.fullmatch(name))
    return name if known and ".." not in name and "--" not in name else None


def commit(revision: object) -> str | None:
    """Return the name of a commit that a file may hold; None for anything else."""
    return revision if isinstance(revision, str) and _REVISION.fullmatch(revision) else None


def origin(entry: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
    """Return Hub id, commit and name of the model that an entry of the lineage started from, as far as it tells."""
    source = mapping(entry.get("source"))
    name, revision = source.get("name", mapping(entry.get("recipe")).get("model")), source.get("revision")
    return hub_id(name, revision), commit(revision), name if isinstance(name, str) else None
