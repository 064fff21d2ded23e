"""Makes a published adapter name its base model by a Hub id, where the adapter here may name a directory."""

import json
from pathlib import Path

from upcycle.checkpoint.adapter import ADAPTER_CONFIG
from upcycle.errors import InputError
from upcycle.hub.client import is_hub_id
from upcycle.hub.contents import Contents
from upcycle.hub.repository import split_id
from upcycle.message import quoted


def public_base(contents: Contents, base: str | None) -> str:
    """Return the Hub id of an adapter's model, `base` if given; raise InputError where that is a directory."""
    found = contents.config.get("base_model_name_or_path")
    name = base or found
    if not isinstance(name, str) or not is_hub_id(name) or (base is None and Path(name).expanduser().is_dir()):
        raise InputError(
            "belongs to a model that others cannot find by its name", where=contents.directory,
            found=quoted(name, 120), hint="--base gives its Hub id, such as org/name",
        )  # fmt: skip
    return name


def with_base(contents: Contents, base: str) -> Contents:
    """Return an adapter's contents with a config that names the Hub id `base`, and a receipt of that config."""
    name, revision = split_id(base)
    named: dict[str, str | None] = {"base_model_name_or_path": name}
    if "@" in base or name != contents.config.get("base_model_name_or_path"):
        named["revision"] = revision if "@" in base else None
    config = {**contents.config, **named}
    if config == dict(contents.config):
        return contents
    return contents.otherwise({ADAPTER_CONFIG: json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"})
