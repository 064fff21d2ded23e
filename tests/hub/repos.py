"""What a Hub holds: repositories, their commits, and files by content."""

import hashlib
import time
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

    def __init__(self, content: bytes | Path) -> None:
        self.content = content
        self.size = len(content) if isinstance(content, bytes) else content.stat().st_size

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

    def commit(self, files: dict[str, bytes | Path | Blob | None], *, branch: str = "main", title: str = "") -> Commit:
        """Put `files` on top of a branch, None deletes one; return the commit."""
        parent = self.commits.get(self.refs.get(branch, ""))
        state = dict(parent.files) if parent else {}
        for path, content in files.items():
            if content is None:
                state.pop(path, None)
            else:
                state[path] = content if isinstance(content, Blob) else Blob(content)
        name = hashlib.sha1(f"{self.name} {branch} {len(self.commits)}".encode(), usedforsecurity=False).hexdigest()
        self.commits[name] = Commit(name, state, title)
        self.refs[branch] = name
        return self.commits[name]

    def find(self, revision: str) -> Commit | None:
        """Return the commit that a branch, a tag or a full hash means."""
        return self.commits.get(self.refs.get(revision, revision))

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
