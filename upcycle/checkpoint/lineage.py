"""Reads an output's history: one entry for each conversion, adapter, training, merge and verification, oldest first.

    upcycle.json    the receipt of convert, attach or merge
    verify.json     what `upcycle verify --record` found; it counts for the receipt whose SHA-256 it names
    lineage.json    everything before this output and, of a training, its own entry

An entry is a JSON object whose `made` says what it describes. It only informs, so a damaged entry is left out with a
warning.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.place import RECEIPT_FILE, VERIFICATION, VERIFICATION_FILE, staging_path
from upcycle.checkpoint.strict_json import MAX_JSON_BYTES, parse_json
from upcycle.checkpoint.writer import sync_directory, write_durably
from upcycle.errors import CheckpointError

LINEAGE_FILE = "lineage.json"

MAX_ENTRIES = 64
"""Only the newest entries are kept, more than any known chain of trainings has."""
MAX_BYTES = 4_000_000
"""Largest lineage or entry: sixty-four receipts of models in hundreds of files."""
MAX_DEPTH = 16
"""Lists and objects inside one another; an entry has 5."""

_UNTOLD = ("files", "computed_sha256")  # of a receipt: long, and of use only beside the files themselves
_OUTPUT: dict[str, tuple[type, ...]] = {
    "receipt_sha256": (str,), "versions": (dict,), "recipe": (dict,), "exact": (bool,), "parameters": (dict,),
    "plan": (str,), "source": (dict,),
}  # fmt: skip
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "conversion": _OUTPUT,
    "merge": _OUTPUT,
    "adapter": {"receipt_sha256": (str,), "versions": (dict,), "recipe": (dict,)},
    VERIFICATION: {
        "receipt_sha256": (str,), "passed": (bool,), "lines": (list,), "parity": (dict,),
        "weights": (dict, type(None)),  # file -> its SHA-256
    },
    "training": {
        "recipe": (dict,), "steps": (int,), "loss": (dict, type(None)), "eval_loss": (dict, type(None)),
        "versions": (dict,),
    },
}  # fmt: skip
"""What an entry describes (`made`) -> its fields and their JSON types; a field that may be null may be missing."""

_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB_ID, _BARE_ID = re.compile(f"{_NAME}/{_NAME}", re.ASCII), re.compile(_NAME, re.ASCII)

_log = logging.getLogger("upcycle")


class Origin(NamedTuple):
    """The model that something was made from, as far as a record names it."""

    base: str | None = None  # its id on the Hub
    revision: str | None = None  # its commit there
    name: str | None = None  # what the record calls it: an id, or a directory's name


def lineage(directory: Path) -> list[dict[str, Any]]:
    """Return the history of the output in `directory`, oldest entry first; empty when upcycle did not make it.

    A file that is damaged or not upcycle's is left out with a warning.
    """
    entries: list[dict[str, Any]] = []
    for name, read in _READERS:
        path = directory / name
        try:
            if path.is_file():
                entries += read(path)
        except (CheckpointError, OSError) as error:
            reason = error if isinstance(error, CheckpointError) else f"{path}: cannot be read ({error.strerror})"
            _log.warning("the history of this model is told without %s: %s", name, str(reason)[:400])
    return entries[-MAX_ENTRIES:]


def lineage_bytes(entries: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the bytes of a `lineage.json`; the same entries give the same bytes."""
    return json.dumps(list(entries)[-MAX_ENTRIES:], indent=1, allow_nan=False).encode() + b"\n"


def origin(entry: Mapping[str, Any]) -> Origin:
    """Return the model that an entry says it started from; what is no name or no commit is left out."""
    said, recipe = entry.get("source"), entry.get("recipe")
    source, asked = (value if isinstance(value, Mapping) else {} for value in (said, recipe))
    name, revision = source.get("name", asked.get("model")), source.get("revision")
    return Origin(hub_id(name, revision), commit(revision), name if isinstance(name, str) else None)


def hub_id(name: object, revision: object = None) -> str | None:
    """Return `name` if it can be the id of a repository on the Hub, else None.

    An id is `owner/name`. One without an owner, such as `gpt2`, could be a directory: it counts only with a commit.
    """
    if not isinstance(name, str) or ".." in name or "--" in name:
        return None
    return name if _HUB_ID.fullmatch(name) or (revision and _BARE_ID.fullmatch(name)) else None


def commit(revision: object) -> str | None:
    """Return the name of a commit or branch; None for anything else."""
    return revision if isinstance(revision, str) and _BARE_ID.fullmatch(revision) else None


def receipt_sha256(directory: Path) -> str:
    """Return the SHA-256 of the receipt in `directory`; a verification names its receipt by it."""
    return sha256_of(directory / RECEIPT_FILE)


def write_verification(directory: Path, entry: Mapping[str, Any]) -> None:
    """Write `verify.json` beside its receipt, durably and in one step; raise OSError when the disk fails."""
    path = directory / VERIFICATION_FILE
    staged = staging_path(path)
    staged.unlink(missing_ok=True)
    write_durably(staged, json.dumps(entry, indent=1, allow_nan=False).encode() + b"\n")
    staged.replace(path)
    sync_directory(directory)


def _history(path: Path) -> list[dict[str, Any]]:
    entries = _parsed(path, MAX_BYTES)
    if not isinstance(entries, list):
        raise CheckpointError("wrong JSON document", where=path, found=type(entries).__name__, expected="a list")
    return [_checked(entry, path) for entry in entries[-MAX_ENTRIES:]]


def _receipt(path: Path) -> list[dict[str, Any]]:
    receipt = _parsed(path, MAX_JSON_BYTES)
    if not isinstance(receipt, dict):
        raise CheckpointError("wrong JSON document", where=path, found=type(receipt).__name__, expected="an object")
    told = {name: value for name, value in receipt.items() if name not in (*_UNTOLD, "upcycle", "made")}
    recipe = receipt.get("recipe")
    merged = isinstance(recipe, dict) and recipe.get("command") == "merge"
    made = "merge" if merged else receipt.get("made", "conversion")
    entry = _checked({"made": made, "receipt_sha256": receipt_sha256(path.parent), **told}, path)
    if len(json.dumps(entry)) > MAX_BYTES:
        raise CheckpointError("says too much beside the files", where=path, expected=f"{MAX_BYTES:,} bytes or less")
    return [entry]


def _verification(path: Path) -> list[dict[str, Any]]:
    entry = _checked(_parsed(path, MAX_BYTES), path)
    if entry["made"] != VERIFICATION:
        raise CheckpointError("is no verification", where=path)
    current = (path.parent / RECEIPT_FILE).is_file() and entry["receipt_sha256"] == receipt_sha256(path.parent)
    return [entry] if current else []


_READERS = ((LINEAGE_FILE, _history), (RECEIPT_FILE, _receipt), (VERIFICATION_FILE, _verification))


def _parsed(path: Path, most: int) -> Any:
    """Return the value of a JSON file that is not too large, not too deep, and can be written again."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise CheckpointError("JSON file too large", where=path, expected=f"at most {most:,} bytes")
    value = parse_json(data, path)
    if _too_deep(value):
        raise CheckpointError("not valid JSON (nested too deeply)", where=path, expected=f"{MAX_DEPTH} levels or less")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # "\ud800" by itself: could be read, but not written again
        raise CheckpointError("holds half of a surrogate pair", where=path) from None
    return value


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inside for item in items]
    return any(isinstance(item, dict | list) for item in level)


def _checked(entry: Any, where: Path) -> dict[str, Any]:
    """Return `entry` if it has the fields of its kind; raise CheckpointError if not."""
    if not isinstance(entry, dict):
        raise CheckpointError("wrong entry", where=where, found=type(entry).__name__, expected="an object")
    fields = _FIELDS.get(made) if isinstance(made := entry.get("made"), str) else None
    if fields is None:
        raise CheckpointError("is an entry of an unknown kind", where=where, expected=f"one of {', '.join(_FIELDS)}")
    wrong = [name for name, kinds in fields.items() if type(entry.get(name)) not in kinds]
    if wrong:
        raise CheckpointError(f"damaged entry of a {made}", where=where, expected=", ".join(wrong))
    return entry
