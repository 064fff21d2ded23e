"""Who pushes, and what is then on the Hub."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.hub.access import TOKEN
from tests.hub.repos import Blob, Repo
from tests.warm import COMMAND_LINE, Run, User

LFS = {"HF_HUB_DISABLE_XET": "1"}
XET: dict[str, str] = {}
WAYS = {"xet": XET, "lfs": LFS}
"""How large files travel -> the variables that say so."""

UPLOADS = "PUT /upload/|POST /v1/xorbs/"
"""Requests that bring the content of large files."""

WRITES = f"{UPLOADS}|POST /v2/shards|/commit/|POST /api/repos|POST .*/branch/|POST .*/discussions"

IMPATIENT = """
import huggingface_hub.utils._http as http
import upcycle.hub.target
for function in (http.http_backoff, http.http_stream_backoff):
    defaults = getattr(function, "__wrapped__", function).__kwdefaults__
    defaults["base_wait_time"] = 0.01
    defaults["max_wait_time"] = 0.02
upcycle.hub.target.WAITS = (0, 0, 0, 0)
"""
"""All that waits before it tries again does so as often, and hardly waits."""

HASTE = {"HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2"}
"""The same for the chunk store's client, which gives up sooner."""


@dataclass(frozen=True)
class Author(User):
    """Who publishes: with a token that writes."""

    fields: Mapping[str, str] = field(default_factory=lambda: {"HF_TOKEN": TOKEN})
    prelude: str = ""  # Python that runs first

    def impatient(self) -> "Author":
        """Return the same, who hardly waits before another attempt."""
        return replace(self.with_(**HASTE), prelude=IMPATIENT)

    def start(self, *words: str | Path, code: str = COMMAND_LINE) -> Run:
        return super().start(*words, code=self.prelude + code)

    def upcycle(self, *words: str | Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run the command line, which must end with an exit code."""
        done = self.run(*words)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr or "--debug" in words
        return done

    def push(self, directory: Path, repo: str, *words: str) -> dict[str, Any]:
        """Push, which must succeed in silence; return what it tells."""
        done = self.upcycle("push", directory, repo, *words, "--json")
        assert done.stderr == ""
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def refused(self, directory: Path, repo: str, *words: str, code: int = 2) -> str:
        """Push, which must fail; return the one line that says why."""
        done = self.upcycle("push", directory, repo, *words, code=code)
        *_, line = done.stderr.splitlines()
        assert done.stdout == ""
        assert line.startswith("upcycle: error: ")
        return line.removeprefix("upcycle: error: ")


def held(repo: Repo, revision: str = "main") -> dict[str, Blob]:
    """The files of a branch, but for what the Hub puts into every repository."""
    commit = repo.find(revision)
    assert commit is not None
    return {path: blob for path, blob in commit.files.items() if path != ".gitattributes"}


def content(repo: Repo, path: str, revision: str = "main") -> bytes:
    """The bytes of a file on a branch."""
    blob = held(repo, revision)[path]
    return blob.read(0, blob.size)


def same(repo: Repo, directory: Path, revision: str = "main") -> bool:
    """Whether a branch holds the files of a directory, byte by byte, and a card."""
    there = {path: content(repo, path, revision) for path in held(repo, revision)}
    return there == {path.name: path.read_bytes() for path in directory.iterdir()} | {"README.md": there["README.md"]}
