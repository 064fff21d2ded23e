"""What a step reads and what it has written, and by what both are recognised: name, size and time, as `make` does.

The weights themselves are not read, so that looking at 93 GB takes no time.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upcycle import requests
from upcycle.checkpoint.adapter import ADAPTER_CONFIG
from upcycle.checkpoint.journal import STATE_FILE
from upcycle.checkpoint.place import RECEIPT_FILE, VERIFICATION_FILE, staging_path
from upcycle.checkpoint.strict_json import read_object
from upcycle.errors import CheckpointError
from upcycle.pipeline.grammar import command_of, command_options
from upcycle.pipeline.stages import BUILT_IN
from upcycle.requests import recorded

MODELS = ("model", "dense", "moe", "adapter", "base", "tokenizer", "from_lora", "metrics", "also")
DATA = ("data", "eval_data", "text", "chat_template")
"""Options that name what is read."""

_COMMIT = "commit "

Facts = list[int]
"""Size in bytes and time of the last change in nanoseconds."""

_CUT = ("batch_size", "grad_accum")  # a training is the same however its batches are cut

_BESIDE = re.compile(
    rf"{re.escape(VERIFICATION_FILE)}|README\.md|checkpoint-\d+(\.partial)?|plots|logs|run\.lock|\..*|.*\.partial"
)
"""What stands beside a model and is no part of it: later steps put it there, or it is removed to save room."""


def facts(path: Path) -> Facts | None:
    """Return by what a file is recognised; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


def names_read(request: Any) -> list[tuple[str, str]]:
    """Return (option, what it names) for all that `request` reads."""
    options = [option for option in command_options(command_of(request)) if option in (*MODELS, *DATA)]
    values = [(option, getattr(request, option)) for option in options]
    every = [(option, said) for option, value in values for said in (value if isinstance(value, tuple) else (value,))]
    return [(option, said) for option, said in every if said is not None]


def read_by(request: Any) -> dict[str, str | None]:
    """Return what `request` reads, `option name` -> its identity, None for what is not there (yet)."""
    found = {f"{option} {said}": _identity(said, data=option in DATA) for option, said in names_read(request)}
    if getattr(request, "base", None) is None:
        adapters = [said for option, said in names_read(request) if option in ("model", "adapter")]
        found |= {f"base of {said}": _identity(base, data=False) for said in adapters if (base := _base_of(said))}
    return found


def is_of_the_hub(identity: str | None) -> bool:
    """Whether what `_identity` returned is of a model that is not here, or was not when it was looked for."""
    return identity is None or identity.startswith(_COMMIT)


def written_by(request: Any, result: Any) -> dict[str, Facts]:
    """Return the files that `request` has written, by their paths as the recipe has them."""
    if isinstance(request, requests.Plot):
        paths: Iterator[Path] = iter(result)
    elif isinstance(request, requests.Verify):
        paths = iter([Path(request.moe).expanduser() / VERIFICATION_FILE] if request.record else [])
    else:
        paths = _files(Path(request.out).expanduser())
    return {str(path): found for path in paths if (found := facts(path)) is not None}


def beginnings(request: Any) -> list[Facts | None]:
    """Return by what can be told whether work on `request` has begun: it changes as soon as there is some."""
    out = Path(request.out).expanduser()
    if isinstance(request, requests.Train):
        from upcycle.train.saved.directory import RECORD_FILE

        return [facts(out / RECORD_FILE)]
    return [facts(staging_path(out) / STATE_FILE), facts(out / RECEIPT_FILE)]


def is_of(request: Any) -> bool:
    """Whether the work that lies in OUT is of just these options: a training may be resumed with more steps, but a
    recipe that says so is another one. Other work is asked for its own fingerprint when it is gone on with.
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
    """By what a model or a source of text is recognised."""
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
    """The model that an adapter names as its own, which is read with it."""
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
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
