"""Finds which commit of a model is in the Hub client's cache, without asking the Hub."""

from pathlib import Path

from upcycle.hub.client import is_hub_id
from upcycle.hub.repository import split_id


def cached_commit(model: str) -> str | None:
    """Return the commit that a Hub id meant when it was last downloaded, or None where the cache has none of it."""
    from huggingface_hub import constants

    if not is_hub_id(model):
        return None
    name, revision = split_id(model)
    place = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    if (place / "snapshots" / revision).is_dir():  # a commit itself
        return revision
    try:
        return (place / "refs" / revision).read_text(encoding="ascii")[:64] or None
    except (OSError, ValueError):
        return None
