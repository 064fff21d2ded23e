"""What can be made again: checkpoints in other formats, as ordinary ones. Made whole, and anew when a file changes."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.writer import sync_directory, sync_file

FORMAT = 4
"""Of what is made; another one is made anew."""

log = logging.getLogger("upcycle")


def cache_directory() -> Path:
    """Return where the cache is: UPCYCLE_CACHE, or `upcycle` in the user's cache directory."""
    own = os.environ.get("UPCYCLE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upcycle"


def cached(kind: str, source: Path, files: Iterable[Path], name: Path, make: Callable[[Path], None]) -> Path:
    """Return the directory `name` in the cache, which `make` fills from `files` when it is not there.

    The time of the last change of a file's entry counts as well: it is the one that no program sets back.
    """
    facts: list[Any] = [FORMAT, str(source)]
    for path in files:
        now = path.stat()
        facts.append([path.name, now.st_size, now.st_mtime_ns, now.st_ctime_ns])
    identity = sha256_of(json.dumps(facts).encode("utf-8", "surrogateescape"))[:12]
    target = cache_directory() / kind / identity / name
    if not target.exists():
        log.info("%s is read once, into %s", source, target)
        parent = cache_directory() / kind
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="unfinished-", dir=parent))
        try:
            make(scratch)
            _finish(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _finish(scratch: Path, target: Path) -> None:
    """Give a directory its name when all of it is on disk."""
    for path in scratch.iterdir():
        path.chmod(0o644)  # private until now, as safetensors and mkdtemp make things
        with path.open("rb+") as file:
            sync_file(file.fileno())
    scratch.chmod(0o755)
    sync_directory(scratch)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch.replace(target)
    except OSError:
        if not target.is_dir():  # else another process was faster
            raise
