"""Reads and writes the journals of an unfinished output: which work it is of, and which shards are complete on disk.

    state.jsonl                      the fingerprint of the plan and its sources, one line
    state-00001-of-00003.jsonl       a line for every shard that part 1 of 3 has finished
    state.lock                       held by whoever begins or ends the work, for a moment
    state-00001-of-00003.lock        held by who writes part 1

Work that is not divided is part 1 of 1. Every machine writes to its own journal, for file systems that machines share
do not append atomically. A shard without a line is written again.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upcycle.checkpoint.writer import sync_file, write_durably
from upcycle.errors import InputError

STATE_FILE = "state.jsonl"
LOCK_FILE = "state.lock"

_BOOKKEEPING = re.compile(r"state(-\d+-of-\d+)?\.(jsonl|lock)")
_JOURNAL = re.compile(r"state-\d+-of-\d+\.jsonl")

Done = dict[str, dict[str, str]]
"""Finished shard -> SHA-256 of its computed tensors."""


@dataclass(frozen=True, slots=True)
class Part:
    """A share of the work: number `index`, from 1, of `count`."""

    index: int = 1
    count: int = 1

    @property
    def words(self) -> str:
        """What it is called in a message."""
        return "here" if self.count == 1 else f"part {self.index} of {self.count} here"

    @property
    def journal(self) -> str:
        """The name of its journal."""
        return f"state-{self.index:05d}-of-{self.count:05d}.jsonl"

    @property
    def lock(self) -> str:
        """The name of its lock."""
        return f"state-{self.index:05d}-of-{self.count:05d}.lock"


WHOLE = Part()
"""Work that is not divided."""


def is_bookkeeping(name: str) -> bool:
    """Whether a file of that name belongs to the work and not to its result."""
    return _BOOKKEEPING.fullmatch(name) is not None


def read_fingerprint(directory: Path) -> dict[str, Any] | None:
    """Return the fingerprint of the work in `directory`, or None where none has begun; InputError if damaged."""
    lines = _read_lines(directory / STATE_FILE)
    return lines[0] if lines else None


def write_fingerprint(directory: Path, fingerprint: Mapping[str, Any]) -> None:
    """Note durably which work begins here."""
    write_durably(directory / STATE_FILE, (json.dumps(fingerprint) + "\n").encode())


def read_done(directory: Path) -> Done:
    """Return what all parts have finished."""
    journals = sorted(path for path in directory.iterdir() if _JOURNAL.fullmatch(path.name))
    done: Done = {}
    for path in journals:
        for line in _read_lines(path):
            if not {"shard", "sha256"} <= set(line):
                raise _damaged(path)
            done[line["shard"]] = line["sha256"]
    return done


def mend(path: Path) -> None:
    """Cut off a line that a kill cut short, so that the next one begins a line. Only for who holds the lock.

    The lines before it are not written again: a full disk would lose them.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b", buffering=0) as file:
            file.truncate(whole)
            sync_file(file.fileno())


def record(path: Path, shard: str, hashes: Mapping[str, str]) -> None:
    """Note durably in the journal `path` that `shard`, whose bytes are already synced, is complete."""
    line = json.dumps({"shard": shard, "sha256": dict(hashes)}) + "\n"
    with path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        sync_file(file.fileno())


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file; none where there is no file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        lines = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    except ValueError:
        raise _damaged(path) from None
    if not all(isinstance(line, dict) for line in lines):
        raise _damaged(path)
    return lines


def _damaged(path: Path) -> InputError:
    return InputError("is damaged", where=path, hint="--overwrite without --resume starts again")
