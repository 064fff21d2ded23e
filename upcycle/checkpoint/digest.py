"""The SHA-256 by which files, and what is written into them, are recognised."""

import hashlib
from pathlib import Path


def sha256_of(what: bytes | Path) -> str:
    """Return the SHA-256, in hexadecimal, of bytes or of all of a file; raise OSError when that cannot be read."""
    if isinstance(what, bytes):
        return hashlib.sha256(what).hexdigest()
    with what.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
