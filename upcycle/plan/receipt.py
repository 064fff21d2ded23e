"""`upcycle.json`: what was made, from what, by which request, and the hashes that let anyone check it.

The receipt holds no time and no path, so the same work gives the same bytes wherever it is done.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import upcycle
from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.place import RECEIPT_FILE
from upcycle.checkpoint.reader import Checkpoint, hub_blob
from upcycle.checkpoint.strict_json import read_object
from upcycle.errors import CheckpointError
from upcycle.plan.account import parameters
from upcycle.plan.plan import Plan

FORMAT = 1
"""Version of the receipt's own layout."""

RECORD = "recipe"
"""The receipt's key for the record of its request; named so since the first version, and old receipts stay readable."""

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
            return Origin(as_text(real.name), None, {})
        etags = {name: blob for name in sorted(names) if (blob := hub_blob(real / name))}
        return Origin(repository.removeprefix(_CACHE_PREFIX).replace("--", "/", 1), real.name, etags)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        return {"name": self.name, "revision": self.revision, "etags": dict(self.etags)}


def receipt_bytes(
    plan: Plan,
    *,
    record: Mapping[str, Any],
    source: Mapping[str, Any],
    hashes: Mapping[str, str],
    side_files: Mapping[str, bytes],
) -> bytes:
    """Return the receipt's bytes.

    `record` is what was asked for, `source` where what is read came from. `hashes` are the SHA-256 of the drawn and
    computed tensors; `side_files` is everything written beside the weights.
    """
    total, active = parameters(plan)
    receipt = {
        "upcycle": FORMAT,
        "versions": _versions(bool(hashes)),
        RECORD: dict(record),
        "exact": plan.exact,
        "parameters": {"total": total, "active": active},
        "plan": plan.hash,
        "source": {**source, "files": plan.sources},
        # of weights, the hash of the header: their data is not read for the receipt
        "files": {shard.name: sha256_of(shard.header) for shard in plan.shards}
        | {name: sha256_of(data) for name, data in sorted(side_files.items())},
        "computed_sha256": dict(sorted(hashes.items())),
    }
    return json.dumps(receipt, indent=2).encode() + b"\n"


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
    wanted = {RECORD: dict, "plan": str, "computed_sha256": dict, "versions": dict, "source": dict, "files": dict}
    broken = [name for name, kind in wanted.items() if not isinstance(receipt.get(name), kind)]
    if broken:
        raise CheckpointError("damaged receipt", where=path, expected=f"{', '.join(broken)}")
    return receipt


def as_text(name: str) -> str:
    """A file's name as Unicode: in an ASCII locale, or where its bytes are no UTF-8, Python gives surrogates for it."""
    return os.fsencode(name).decode("utf-8", "replace")


def _versions(computed: bool) -> dict[str, str]:
    """The versions on which the bytes depend: NumPy's only when something was drawn."""
    versions = {"upcycle": upcycle.__version__}
    if computed:
        import numpy as np

        versions["numpy"] = np.__version__
    return versions
