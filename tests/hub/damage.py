"""Ways to damage what is stored; the Hub then tells sizes and hashes of what is really there.

`hub.corrupt(pattern, flipped)` strikes commits to come, `damage(hub, repo, path, flipped)` what is there already.
"""

import hashlib
from collections.abc import Callable

from tests.hub.hub import Hub
from tests.hub.repos import Blob, Repo


def flipped(blob: Blob) -> Blob:
    """Change one bit in the middle."""
    data = bytearray(blob.read(0, blob.size))
    data[blob.size // 2] ^= 1
    return renamed(bytes(data))


def truncated(blob: Blob) -> Blob:
    """Lose the last byte."""
    return renamed(blob.read(0, blob.size - 1))


def lost(blob: Blob) -> None:
    """Lose the whole file."""


def renamed(data: bytes) -> Blob:
    return Blob(data, sha256=hashlib.sha256(data).hexdigest())


def damage(hub: Hub, repo: Repo, path: str, how: Callable[[Blob], Blob | None], *, branch: str = "main") -> None:
    """Damage a file where a branch stands, without a commit; its object is no longer stored."""
    head = repo.find(branch)
    assert head is not None
    blob = head.files.pop(path)
    hub.uploads.pop(blob.sha256, None)
    if (left := how(blob)) is not None:
        head.files[path] = left
