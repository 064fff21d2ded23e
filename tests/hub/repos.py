"""What a Hub holds: repositories, their commits, and files by content."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

LFS_SUFFIXES = {".safetensors", ".bin", ".gguf", ".model"}
"""Files that are stored apart from git, by the rules that the Hub writes into a new repository."""

LFS_SIZE = 10_000_000
HASHED_SIZE = 300_000_000
"""A bigger file, in tests a sparse one, is called by a name that is made up: hashing holes takes minutes."""


class Blob:
    """The content of a file: bytes, or a file on disk that is sent from there."""

    def __init__(self, content: bytes | Path, *, sha256: str = "", size: int = -1) -> None:
        self.content = content
        self.size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if sha256:
            self.__dict__["sha256"] = sha256  # known, thus never computed
        if size >= 0:
            self.size = size

    def read(self, start: int, count: int) -> bytes:
        if isinstance(self.content, bytes):
            return self.content[start : start + count]
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(count)

    @cached_property
    def sha256(self) -> str:
        if self.size > HASHED_SIZE:
            return hashlib.sha256(f"{self.content!r} {self.size}".encode()).hexdigest()
        return hashlib.sha256(self.read(0, self.size)).hexdigest()

    @cached_property
    def git_id(self) -> str:
        """As git calls it; of a large file git has a pointer only."""
        data = self.pointer if self.size > LFS_SIZE else self.read(0, self.size)
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    def is_lfs(self, path: str) -> bool:
        return Path(path).suffix in LFS_SUFFIXES or self.size > LFS_SIZE


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    id: str
    files: dict[str, Blob]
    title: str = ""
    description: str = ""
    parent: str | None = None


@dataclass
class Pull:
    """A pull request, or a discussion without changes."""

    number: int
    title: str
    description: str = ""
    status: str = "draft"  # then open, closed or merged
    changes: bool = True  # whether it is a pull request
    author: str = "someone"
    base: str = ""  # the commit of main that it began with
    merged: str | None = None  # the commit of main that it became

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.number}"


@dataclass
class Repo:
    """A model repository; `access` says who may read it.

    public: anyone. gated: anyone sees what is in it, the holder of the token reads it. private: to anyone else it
    does not exist.
    """

    name: str
    access: str = "public"
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit
    xet: dict[str, str] = field(default_factory=dict)  # SHA-256 -> hash in the chunk store; empty without one
    pulls: list[Pull] = field(default_factory=list)  # with discussions, by number from 1

    def commit(
        self,
        files: Mapping[str, bytes | Path | Blob | None],
        *,
        branch: str = "main",
        title: str = "",
        description: str = "",
    ) -> Commit:
        """Put `files` on top of a branch, None deletes one; return the commit."""
        parent = self.commits.get(self.refs.get(branch, ""))
        state = dict(parent.files) if parent else {}
        for path, content in files.items():
            if content is None:
                state.pop(path, None)
            else:
                state[path] = content if isinstance(content, Blob) else Blob(content)
        name = hashlib.sha1(f"{self.name} {branch} {len(self.commits)}".encode(), usedforsecurity=False).hexdigest()
        self.commits[name] = Commit(name, state, title, description, parent.id if parent else None)
        self.refs[branch] = name
        return self.commits[name]

    def find(self, revision: str) -> Commit | None:
        """Return the commit that a branch, a tag or a full hash means."""
        return self.commits.get(self.refs.get(revision, revision))

    def history(self, commit: Commit) -> list[Commit]:
        """A commit and those it stands on, newest first."""
        found = [commit]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found

    def pull(self, title: str, **fields: Any) -> Pull:
        """Open a pull request, which begins as main stands, or a discussion."""
        self.pulls.append(Pull(len(self.pulls) + 1, title, base=self.refs["main"], **fields))
        if self.pulls[-1].changes:
            self.refs[self.pulls[-1].ref] = self.refs["main"]
        return self.pulls[-1]

    def merge(self, pull: Pull) -> None:
        """Make what a pull request changes main's next commit."""
        before, after = self.commits[pull.base].files, self.commits[self.refs[pull.ref]].files
        changed = {path: after.get(path) for path in before | after if before.get(path) is not after.get(path)}
        pull.merged = self.commit(changed, title=f"{pull.title} (#{pull.number})").id
        pull.status = "merged"

    def keep_in_chunks(self, store: Path) -> None:
        """Put the large files of the newest commit into a chunk store on disk, in place of LFS."""
        import hf_xet  # type: ignore[import-untyped]

        new = {blob.sha256: blob for path, blob in self._head().files.items() if blob.is_lfs(path)}
        with hf_xet.XetSession().new_upload_commit(
            endpoint=f"local://{store}", token="none", token_expiry_unix_secs=int(time.time()) + 3600
        ) as upload:
            uploads = {oid: upload.start_upload_bytes(blob.read(0, blob.size)) for oid, blob in new.items()}
        self.xet |= {oid: handle.result().xet_info.hash for oid, handle in uploads.items()}

    def _head(self) -> Commit:
        return self.commits[self.refs["main"]]

    def info(self, commit: Commit, *, blobs: bool) -> dict[str, Any]:
        """What `GET /api/models/NAME` answers."""
        siblings = [
            {"rfilename": path} | (self._sibling(path, blob) if blobs else {}) for path, blob in commit.files.items()
        ]
        return {
            "_id": "0" * 24, "id": self.name, "modelId": self.name, "sha": commit.id, "siblings": siblings,
            "private": self.access == "private", "gated": "auto" if self.access == "gated" else False,
            "lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2024-01-01T00:00:00.000Z",
            "disabled": False, "downloads": 0, "likes": 0, "tags": [], "spaces": [],
        }  # fmt: skip

    def _sibling(self, path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"size": blob.size, "blobId": blob.git_id}
        if blob.is_lfs(path):
            entry["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
        return entry

    def entries(self, commit: Commit, paths: list[str]) -> list[dict[str, Any]]:
        """What `POST /api/models/NAME/paths-info/REVISION` answers; what is not there is left out."""
        everything = {entry["path"]: entry for entry in self.tree(commit, "", recursive=True)}
        return [everything[path] for path in paths if path in everything]

    def tree(self, commit: Commit, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
        """What `GET /api/models/NAME/tree/REVISION/FOLDER` answers."""
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                name = prefix + "/".join(parts[:depth])
                entries.setdefault(name, {"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
            entries[path] = self._entry(path, blob)
        shown = entries.values()
        return [entry for entry in shown if recursive or "/" not in entry["path"].removeprefix(prefix)]

    def _entry(self, path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob.git_id, "size": blob.size}
        if blob.is_lfs(path):
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
            if blob.sha256 in self.xet:
                entry["xetHash"] = self.xet[blob.sha256]
        return entry
