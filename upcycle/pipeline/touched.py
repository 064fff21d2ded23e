"""Identifies what a step reads and what it has written by name, size and time of each file, as `make` does.

The weights themselves are not read, so that comparing 93 GB takes no time.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from upcycle import requests
from upcycle.checkpoint.adapter import ADAPTER_CONFIG
from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.journal import STATE_FILE
from upcycle.checkpoint.place import RECEIPT_FILE, VERIFICATION_FILE, staging_path
from upcycle.checkpoint.strict_json import read_object
from upcycle.errors import CheckpointError
from upcycle.option import options_of
from upcycle.pipeline.locate import BUILT_IN
from upcycle.requests import recorded
from upcycle.requests.commands import command_of

_COMMIT = "commit "

Facts = list[int]
"""Size in bytes and time of the last change in nanoseconds."""

_CUT = ("batch_size", "grad_accum")  # a training is the same however its batches are cut

_BESIDE = re.compile(
    rf"{re.escape(VERIFICATION_FILE)}|README\.md|checkpoint-\d+(\.partial)?|plots|logs|run\.lock|\..*|.*\.partial"
)
"""Names in a model's directory that are no part of the model: written by later steps, or removed to save room."""


def facts(path: Path) -> Facts | None:
    """Return size and time of a file, or None if there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


def names_read(request: Any) -> list[tuple[str, str]]:
    """Return (option, what it names) for all that `request` reads."""
    command = command_of(request)
    options = [option for option in options_of(command.request) if option in (*command.reads, *command.texts)]
    values = [(option, getattr(request, option)) for option in options]
    every = [(option, said) for option, value in values for said in (value if isinstance(value, tuple) else (value,))]
    return [(option, said) for option, said in every if said is not None]


def read_by(request: Any) -> dict[str, str | None]:
    """Return what `request` reads: OPTION NAME -> its identity, or None if it is not there (yet)."""
    texts = command_of(request).texts
    found = {f"{option} {said}": _identity(said, data=option in texts) for option, said in names_read(request)}
    if getattr(request, "base", None) is None:
        adapters = [said for option, said in names_read(request) if option in ("model", "adapter")]
        found |= {f"base of {said}": _identity(base, data=False) for said in adapters if (base := _base_of(said))}
    return found


def is_of_the_hub(identity: str | None) -> bool:
    """Whether an identity is that of a model on the Hub, or of one that was not found."""
    return identity is None or identity.startswith(_COMMIT)


def written_by(request: Any, result: Any) -> dict[str, Facts]:
    """Return the files that `request` has written, by their paths as the recipe has them.

    They are the paths that the command returned, the record of a verification, or all files in OUT.
    """
    paths: Iterable[Path] = ()
    if isinstance(result, list):
        paths = result
    elif isinstance(request, requests.Verify):
        paths = [Path(request.moe).expanduser() / VERIFICATION_FILE] if request.record else []
    elif getattr(request, "out", None):
        paths = _files(Path(request.out).expanduser())
    return {str(path): found for path in paths if (found := facts(path)) is not None}


def beginnings(request: Any) -> list[Facts | None]:
    """Return the facts of the files in OUT that change as soon as work on `request` begins."""
    out = Path(request.out).expanduser()
    if isinstance(request, requests.Train):
        from upcycle.train.saved.directory import RECORD_FILE

        return [facts(out / RECORD_FILE)]
    return [facts(staging_path(out) / STATE_FILE), facts(out / RECEIPT_FILE)]


def is_of(request: Any) -> bool:
    """Whether the training in OUT has the options of `request`; true for every other command.

    A training can be resumed by hand with more steps, but a recipe that asks for more steps is another recipe. Other
    commands compare fingerprints by themselves when they resume.
    """
    if not isinstance(request, requests.Train):
        return True
    from upcycle.train.saved.directory import read_record

    try:
        record = read_record(Path(request.out).expanduser())
    except CheckpointError:
        return False
    wanted = {name: value for name, value in recorded(request).items() if name not in _CUT}
    return record is None or record.fingerprint.get("recipe") == json.loads(json.dumps(wanted))


def _identity(said: str, *, data: bool) -> str | None:
    """Return a hash of the facts of a model's or text's files, or the Hub's commit; None for what is not there."""
    if said in BUILT_IN:
        return "built in"
    try:
        path = Path(said).expanduser()
        if path.is_file():
            return _digest({path.name: facts(path)})
        if path.is_dir():
            files = _texts(path) if data else _files(path)
            return _digest({item.relative_to(path).as_posix(): facts(item) for item in files})
    except (OSError, RuntimeError, ValueError):  # a name that is too long, the home of nobody
        return None
    if data:
        return "elsewhere"
    from upcycle.hub.cached import cached_commit

    commit = cached_commit(said)
    return commit and f"{_COMMIT}{commit}"


def _base_of(said: str) -> str | None:
    """Return the base model that the adapter `said` names, or None if it is no adapter."""
    try:
        path = Path(said).expanduser() / ADAPTER_CONFIG
        base = read_object(path).get("base_model_name_or_path") if path.is_file() else None
    except (CheckpointError, OSError, RuntimeError, ValueError):
        return None
    return base if isinstance(base, str) else None


def _files(directory: Path) -> Iterator[Path]:
    """Yield the files of a model's directory, sorted, without what stands beside the model."""
    for entry in sorted(directory.iterdir()):
        if _BESIDE.fullmatch(entry.name):
            continue
        yield from sorted(path for path in entry.rglob("*") if path.is_file()) if entry.is_dir() else [entry]


def _texts(directory: Path) -> list[Path]:
    """The files of a directory of text; those in directories below it are not taken."""
    return sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))


def _digest(value: Any) -> str:
    return sha256_of(json.dumps(value, sort_keys=True).encode())
