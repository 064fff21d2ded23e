"""Keeps the finished shards of a streamed conversion on a branch of the repository, until they are all on main.

model-00001-of-00020.safetensors             a shard
.upcycle/model-00001-of-00020.safetensors    its record: size, SHA-256, and the hashes of what was computed
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from upcycle.checkpoint.strict_json import parse_object
from upcycle.errors import CheckpointError
from upcycle.hub.changes import Changes, Sender
from upcycle.hub.contents import Item, OnBranch
from upcycle.hub.repository import Repository
from upcycle.hub.target import Target, attempts

_MAX_RECORD = 32_000_000


@dataclass(frozen=True)
class Finished:
    """A shard that is on the branch."""

    file: OnBranch
    hashes: Mapping[str, str]  # computed tensor -> SHA-256


@dataclass(frozen=True)
class WorkingBranch:
    """A branch of a repository to which one shard after the other is committed."""

    target: Target
    name: str

    def finished(self) -> dict[str, Finished]:
        """Return the finished shards by name, without those whose bytes differ; make the branch if needed."""

        def look() -> dict[str, Finished]:
            self.target.branch(self.name)
            state = self.target.state(self.name)
            found = ((name, self._finished(name, state)) for name in state.sizes)
            return {name: entry for name, entry in found if entry}

        return attempts(look)

    def put(self, path: Path, hashes: Mapping[str, str]) -> Finished:
        """Upload the shard `path` and commit it with its record; it may be deleted afterwards."""
        sender = Sender(self.target, f"Add {path.name}")

        def once() -> Finished:
            state = self.target.state(self.name)
            shard = Item(path.name, path)
            sender.upload([shard], state.revision)
            sha256 = sender.hashes[path.name]
            record = {"size": shard.size, "sha256": sha256, "hashes": dict(hashes)}
            note = Item(_record(path.name), json.dumps(record).encode() + b"\n")
            sender.send(Changes((shard, note), (), ()), state)
            return Finished(OnBranch(self.name, shard.size, sha256), dict(hashes))

        return attempts(once)

    def remove(self) -> None:
        """Remove the branch: main has what it held."""
        attempts(lambda: self.target.remove_branch(self.name))

    def _finished(self, name: str, state: Repository) -> Finished | None:
        """Read a shard's record; None where it has none, or one of a shard with other bytes."""
        record = _record(name)
        if record not in state.sizes or state.sizes[record] > _MAX_RECORD:
            return None
        try:
            said = parse_object(state.read(record, 0, state.sizes[record]), record)
        except CheckpointError:
            return None
        hashes = said.get("hashes")
        if not isinstance(hashes, dict) or not all(isinstance(digest, str) for digest in hashes.values()):
            return None
        size, sha256 = state.sizes[name], state.digests.get(name)
        if sha256 is None or (said.get("size"), said.get("sha256")) != (size, sha256):
            return None
        return Finished(OnBranch(self.name, size, sha256), hashes)


def _record(shard: str) -> str:
    return f".upcycle/{shard}.json"
