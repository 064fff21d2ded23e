"""The state of a Hub: its repositories and storage, what it remembers of every request, and what a test plants."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hub import chunks
from tests.hub.repos import Blob, Repo

NAMESPACES = {"someone", "org"}
"""Where the holder of the token that writes may make repositories and commit."""


@dataclass
class Request:
    """A request as it was answered."""

    method: str
    path: str  # without the query
    port: int
    range: str | None
    authorized: bool  # whether it carried any token
    status: int = 0
    sent: int = 0  # bytes, head included
    received: int = 0  # bytes of the body


@dataclass
class Fault:
    """What goes wrong with the requests whose `METHOD /path` a pattern finds, the first `times` of them."""

    pattern: str
    times: int
    status: int = 0  # answered in place of the real answer
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "planted"}'  # of that answer
    after: int | None = None  # bytes of the answer's body, then the connection is dropped ...
    hold: bool = False  # ... or stands still until the client goes
    upload_after: int | None = None  # bytes of the request's body, then `status` or, without one, a reset
    reached: threading.Event = field(default_factory=threading.Event)

    def strikes(self, line: str, length: int | None) -> bool:
        """Tell whether a request is hit; one whose body ends before `upload_after` is passed over."""
        if self.times <= 0 or not re.search(self.pattern, line):
            return False
        return self.upload_after is None or length is None or length >= self.upload_after


@dataclass
class Corruption:
    """What happens to files of commits to come whose path a pattern finds, the first `times` of them."""

    pattern: str
    damage: Callable[[Blob], Blob | None]  # of `tests.hub.damage`; None loses the file
    times: int


@dataclass
class Hub:
    """A Hub on loopback; `with serving(...)` runs it."""

    store: Path  # where the chunk store and the objects of LFS are
    repos: dict[str, Repo] = field(default_factory=dict)
    uploads: dict[str, Blob] = field(default_factory=dict)  # objects of LFS by SHA-256
    log: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    corruptions: list[Corruption] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    url: str = ""
    storage: str = ""  # another origin, to which large files are redirected; "" sends them from here
    cas: str = "http"  # how clients reach the chunk store; "local": on disk, past the server
    ranges: bool = True  # whether Range is understood
    part_size: int | None = None  # bytes: larger objects of LFS are asked for in parts
    namespaces: set[str] = field(default_factory=NAMESPACES.copy)
    closing: threading.Event = field(default_factory=threading.Event)
    writing: threading.RLock = field(default_factory=threading.RLock)  # held by whatever moves a reference

    def repo(self, name: str, files: dict[str, Any], **fields: Any) -> Repo:
        """Make a repository with one commit."""
        self.repos[name] = Repo(name, **fields)
        self.repos[name].commit(files)
        return self.repos[name]

    def plant(self, pattern: str, *, times: int = 1, **what: Any) -> Fault:
        """Plant a fault for requests to come."""
        self.faults.append(Fault(pattern, times, **what))
        return self.faults[-1]

    def fault(self, line: str, length: int | None) -> Fault | None:
        """Return the fault that strikes a request with so many bytes of body, if that is known, and count it."""
        for fault in self.faults:
            if fault.strikes(line, length):
                fault.times -= 1
                return fault
        return None

    def corrupt(self, pattern: str, damage: Callable[[Blob], Blob | None], *, times: int = 1) -> Corruption:
        """Damage what commits to come put at paths that a pattern finds, after it arrived in order."""
        self.corruptions.append(Corruption(pattern, damage, times))
        return self.corruptions[-1]

    def sent(self, pattern: str = "") -> int:
        """Bytes that were sent in answer to requests whose `METHOD /path` a pattern finds."""
        return sum(request.sent for request in self.requests(pattern))

    def received(self, pattern: str = "") -> int:
        """Bytes that came as the body of requests whose `METHOD /path` a pattern finds."""
        return sum(request.received for request in self.requests(pattern))

    def requests(self, pattern: str = "") -> list[Request]:
        return [request for request in self.log if re.search(pattern, f"{request.method} {request.path}")]

    def find(self, oid: str) -> Blob | None:
        """Return the large file with this SHA-256, wherever it is stored."""
        if oid in self.uploads:
            return self.uploads[oid]
        if found := chunks.files(self.store).get(oid):
            return chunks.Chunked(self.store, self.cas_url, oid, found)
        commits = (commit for repo in self.repos.values() for commit in repo.commits.values())
        blobs = ((path, blob) for commit in commits for path, blob in commit.files.items())
        return next((blob for path, blob in blobs if blob.is_lfs(path) and blob.sha256 == oid), None)

    @property
    def cas_url(self) -> str:
        """Where clients find the chunk store."""
        return self.url if self.cas == "http" else f"local://{self.store}"

    def chunk_bytes(self) -> int:
        """Bytes on disk that the chunk store takes for the contents of files."""
        return chunks.stored_bytes(self.store)
