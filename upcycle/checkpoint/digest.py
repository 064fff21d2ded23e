"""The SHA-256 by which files, and what is written into them, are recognised."""

import hashlib
from pathlib import Path


def sha256_of(what: bytes | bytearray | Path) -> str:
    """Return the SHA-256, in hexadecimal, of bytes or of all of a file; raise OSError when that cannot be read."""
    if not isinstance(what, Path):
        return hashlib.sha256(what).hexdigest()
    with what.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seed_from(key: str) -> int:
    """Return the seed of what is drawn under the name `key`, 63 bits of its SHA-256: torch takes no more."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
