"""The chunk store on disk, as the client leaves it: which files are in it, the bytes it takes, a file read back.

A shard lists files: 48 bytes of name, flags and number of parts, 48 bytes for every part, as many again if they can
be checked, and 48 bytes that begin with the SHA-256 (https://huggingface.co/docs/xet/shard).
"""

import os
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.hub.repos import Blob

HEADER, ENTRY = 48, 48  # bytes
END = b"\xff" * 32
READER, WRITER = "xet-read", "xet-write"
"""The tokens of the chunk store, which the Hub hands out."""

CHECKED, NAMED = 1 << 31, 1 << 30
"""Flags of a file in a shard: its parts can be checked; its SHA-256 follows."""


@dataclass(frozen=True)
class Part:
    """A row of chunks in a block: the first, the one after the last, and their size together in bytes."""

    block: str
    first: int
    end: int
    size: int


@dataclass(frozen=True)
class StoredFile:
    """A file by its hash in the chunk store."""

    name: str
    parts: list[Part]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.size for part in self.parts)


class Chunked(Blob):
    """A file that went to the chunk store; it is put together when it is first read."""

    def __init__(self, store: Path, url: str, oid: str, file: StoredFile) -> None:
        super().__init__(b"", sha256=oid, size=file.size)
        self.store, self.url, self.xet = store, url, file.name
        self.__dict__["git_id"] = Blob(self.pointer).git_id

    @cached_property
    def whole(self) -> Blob:
        path = self.store / "whole" / self.sha256
        if self.size and not path.exists():
            fetch(self.url, self.xet, self.size, path)
        return Blob(path if self.size else b"")

    def read(self, start: int, count: int) -> bytes:
        return self.whole.read(start, count)


def text(name: bytes) -> str:
    """Return a hash as the client writes it: four little-endian numbers in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", name))


def files(store: Path) -> dict[str, StoredFile]:
    """SHA-256 -> every file that the store knows."""
    found: dict[str, StoredFile] = {}
    for path in (store / "xet/xorbs/shards").glob("*.mdb"):
        found |= shard(path.read_bytes())
    return found


def shard(data: bytes) -> dict[str, StoredFile]:
    """SHA-256 -> the files of one shard."""
    found: dict[str, StoredFile] = {}
    start = HEADER
    while (name := data[start : start + 32]) != END:
        flags, count = struct.unpack_from("<II", data, start + 32)
        start += ENTRY
        entries = [data[start + at * ENTRY : start + (at + 1) * ENTRY] for at in range(count)]
        start += count * ENTRY * (2 if flags & CHECKED else 1)
        if flags & NAMED:
            found[text(data[start : start + 32])] = StoredFile(text(name), [part(entry) for entry in entries])
            start += ENTRY
    return found


def part(entry: bytes) -> Part:
    block, _flags, size, first, end = struct.unpack("<32sIIII", entry)
    return Part(text(block), first, end, size)


def stored_bytes(store: Path) -> int:
    """Bytes on disk of the blocks in which the chunks are."""
    return sum(
        path.stat().st_size for path in (store / "xet/xorbs/xorbs").glob("default.*") if path.suffix != ".tagset"
    )


def holder(store: Path, chunk: str) -> bytes | None:
    """Return a shard that lists a chunk, with a foot as the client wants it."""
    wanted = struct.pack("<4Q", *(int(chunk[at : at + 16], 16) for at in range(0, 64, 16)))
    for path in (store / "xet/xorbs/shards").glob("*.mdb"):
        data = path.read_bytes()
        if wanted in data:
            return data if struct.unpack_from("<Q", data, 40)[0] else with_foot(data)
    return None


def with_foot(data: bytes) -> bytes:
    """Return a shard with where its sections begin, no tables to look things up, no key, and a day to live."""
    blocks = data.index(END) + ENTRY
    now = int(time.time())
    places = struct.pack("<9Q", 1, HEADER, blocks, *(len(data), 0) * 3)
    foot = places + bytes(32) + struct.pack("<2Q", now, now + 86400) + bytes(72) + struct.pack("<Q", len(data))
    return data[:40] + struct.pack("<Q", len(foot)) + data[HEADER:] + foot


FETCH = """
import sys, time, hf_xet
url, token, name, size, target = sys.argv[1:]
given = {"endpoint": url, "token": token, "token_expiry_unix_secs": int(time.time()) + 3600}
with hf_xet.XetSession().new_file_download_group(**given) as group:
    group.start_download_file(hf_xet.XetFileInfo(name, int(size)), target)
"""
"""In a process of its own: what the client keeps beside the file goes where the environment says."""


def fetch(url: str, name: str, size: int, target: Path) -> None:
    """Put a file of the chunk store at an address together at `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = {"HF_HOME": str(target.parent / "home"), "NO_PROXY": "127.0.0.1,localhost"}
    words = [sys.executable, "-c", FETCH, url, READER, name, str(size), str(target)]
    subprocess.run(words, env=os.environ | kept, check=True, capture_output=True)
