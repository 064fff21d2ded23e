"""`upcycle.json`: what was made, from what, by which recipe, and the hashes that let anyone check it.

The receipt holds no time and no path, so the same conversion gives the same bytes wherever it is done.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import upcycle
from upcycle.checkpoint.place import RECEIPT_FILE
from upcycle.checkpoint.reader import Checkpoint, hub_blob
from upcycle.checkpoint.strict_json import read_object
from upcycle.convert.account import Account
from upcycle.errors import CheckpointError, RecipeError
from upcycle.option import Option, options_of
from upcycle.plan.plan import Plan
from upcycle.recipe import Conversion, recorded

FORMAT = 1
"""Version of the receipt's own layout."""

_CACHE_PREFIX = "models--"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a checkpoint came from, as far as its directory tells."""

    name: str  # the Hub id, or the directory's own name
    revision: str | None  # commit on the Hub
    etags: Mapping[str, str]  # weight file -> the Hub's etag (its SHA-256)

    @staticmethod
    def of(directory: Path, names: Iterable[str]) -> "Origin":
        """Read the origin of the files `names` off their directory: the Hub's cache is
        `models--org--name/snapshots/REVISION/`.
        """
        real = directory.resolve()
        repository = real.parent.parent.name
        if real.parent.name != "snapshots" or not repository.startswith(_CACHE_PREFIX):
            return Origin(_text(real.name), None, {})
        etags = {name: blob for name in sorted(names) if (blob := hub_blob(real / name))}
        return Origin(repository.removeprefix(_CACHE_PREFIX).replace("--", "/", 1), real.name, etags)


def write_receipt(
    plan: Plan,
    account: Account,
    request: Conversion,
    hashes: Mapping[str, str],
    origin: Origin,
    side_files: Mapping[str, bytes],
) -> bytes:
    """Return the receipt's bytes.

    `hashes` are the SHA-256 of the drawn and computed tensors; `side_files` is everything written beside the weights.
    """
    recipe = recorded(request)
    recipe["model"] = origin.name
    for name in ("tokenizer", "chat_template"):
        recipe[name] = recipe[name] and _text(Path(recipe[name]).name)
    receipt = {
        "upcycle": FORMAT,
        "versions": _versions(bool(hashes)),
        "recipe": recipe,
        "exact": plan.exact,
        "parameters": {"total": account.total, "active": account.active},
        "plan": plan.hash,
        "source": {
            "name": origin.name,
            "revision": origin.revision,
            "etags": dict(origin.etags),
            "files": plan.sources,
        },
        # of weights, the hash of the header: their data is not read for the receipt
        "files": {shard.name: hashlib.sha256(shard.header).hexdigest() for shard in plan.shards}
        | {name: hashlib.sha256(data).hexdigest() for name, data in sorted(side_files.items())},
        "computed_sha256": dict(sorted(hashes.items())),
    }
    return json.dumps(receipt, indent=2).encode() + b"\n"


def _text(name: str) -> str:
    """A file's name as Unicode: in an ASCII locale, or where its bytes are no UTF-8, Python gives surrogates for it."""
    return os.fsencode(name).decode("utf-8", "replace")


def read_receipt(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the receipt in a checkpoint's directory; raise CheckpointError when there is none that can be read."""
    path = checkpoint.directory / RECEIPT_FILE
    if not path.exists():
        raise CheckpointError(
            "there is no receipt to hold the tensors against",
            where=path,
            hint="verify takes the dense model first, then what `upcycle convert` wrote",
        )
    receipt = read_object(path)
    if receipt.get("upcycle") != FORMAT:
        raise CheckpointError("another receipt format", where=path, found=receipt.get("upcycle"), expected=FORMAT)
    wanted = {"recipe": dict, "plan": str, "computed_sha256": dict, "versions": dict, "source": dict, "files": dict}
    broken = [name for name, kind in wanted.items() if not isinstance(receipt.get(name), kind)]
    if broken:
        raise CheckpointError("damaged receipt", where=path, expected=f"{', '.join(broken)}")
    return receipt


def request_of(receipt: Mapping[str, Any], where: Path) -> Conversion:
    """Return the conversion that a receipt records, for building its plan again."""
    said = {**receipt["recipe"], "tokenizer": None, "chat_template": None}
    options = {name: option for name, option in options_of(Conversion).items() if option.recorded}
    wrong = [name for name, option in options.items() if not _fits(option, said.get(name))]
    if wrong or set(said) != set(options):
        raise CheckpointError(f"damaged recipe in the receipt ({', '.join(wrong) or 'wrong names'})", where=where)
    values: dict[str, Any] = {name: tuple(value) if options[name].many else value for name, value in said.items()}
    try:
        return Conversion(**values, allow_dead_router=True)
    except RecipeError as error:
        raise CheckpointError(f"damaged recipe in the receipt ({error})", where=where) from None


def _fits(option: Option, value: Any) -> bool:
    """Whether a value of the receipt's JSON is one that the option can have."""
    if option.many:
        return isinstance(value, list) and all(type(item) is option.kind for item in value)
    if value is None:
        return option.nullable
    if option.choices:
        return value in option.choices
    return type(value) is option.kind or (option.kind is float and type(value) is int)


def _versions(computed: bool) -> dict[str, str]:
    """The versions on which the bytes depend: NumPy's only when something was drawn."""
    versions = {"upcycle": upcycle.__version__}
    if computed:
        import numpy as np

        versions["numpy"] = np.__version__
    return versions
