"""Compares a repository with what it shall hold, uploads the difference, commits it, and compares again."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from upcycle.checkpoint.digest import sha256_of
from upcycle.errors import UpcycleError
from upcycle.hub.contents import Contents, Item, OnBranch
from upcycle.hub.repository import Repository
from upcycle.hub.stale import beside, is_of_a_model
from upcycle.hub.target import Target
from upcycle.message import listed

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

SHA256_LETTERS = 64
_SHOWN = 3
_HELD = 10_000_000
"""Bytes; smaller files are read once and kept in memory, because the client reads them when it commits."""


@dataclass(frozen=True)
class Changes:
    """The files to add to a repository and to remove from it, so that it holds what shall be published."""

    new: tuple[Item, ...]  # and files that are others now
    same: tuple[str, ...]
    stale: tuple[str, ...]  # of the model that was there before
    beside: tuple[str, ...] = ()  # weights of another model that stay there, where these are new

    def known(self, state: Repository) -> dict[str, str]:
        """Return the SHA-256 of what was found to be the same, which need not be read again."""
        digests = {name: state.digests[name] for name in self.same}
        return {name: digest for name, digest in digests.items() if len(digest) == SHA256_LETTERS}

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.new or self.stale)


def compare(contents: Contents, state: Repository) -> Changes:
    """Return what of `contents` the repository lacks; files of equal size are read for their hashes.

    Raises CheckpointError when a file has changed since it was checked, or is not what was verified.
    """
    with ThreadPoolExecutor() as pool:
        there = list(pool.map(lambda item: _is_there(item, state), contents.items))
    for item in contents.items:
        item.check_unchanged()
    new = tuple(item for item, found in zip(contents.items, there, strict=True) if not found)
    names = {item.name for item in contents.items}
    others = beside(state.sizes, names) if any(is_of_a_model(item.name) for item in new) else ()
    return Changes(
        new, tuple(sorted(names - {item.name for item in new})), tuple(sorted(_stale(names, state))),
        tuple(sorted(others)),
    )  # fmt: skip


def check(contents: Contents, state: Repository, hashes: Mapping[str, str]) -> None:
    """Raise UpcycleError unless the Hub holds every file of `contents`, by size and hash, and no other weights.

    `hashes` are the SHA-256 that are known of files; others are read once more.
    """
    wrong = []
    for item in contents.items:
        size, digest = state.sizes.get(item.name), state.digests.get(item.name)
        known = hashes.get(item.name) if digest is not None and len(digest) == SHA256_LETTERS else None
        if size is None:
            wrong.append(f"{item.name} is not there")
        elif size != item.size:
            wrong.append(f"{item.name} has {size:,} bytes, not {item.size:,}")
        elif digest is None or digest != (known or _digest_of(item, digest)):
            wrong.append(f"{item.name} has the hash {(digest or 'unknown')[:16]}")
    wrong += [f"{name} is still there" for name in _stale({item.name for item in contents.items}, state)]
    if wrong:
        found = listed(wrong, _SHOWN, cut=300)
        raise UpcycleError(f"{state.name}: what the Hub holds is not what was sent: {found}; push it again")


@dataclass
class Sender:
    """Uploads files and commits them; remembers what it has hashed and sent, for the attempt after a failure."""

    target: Target
    title: str
    mark: str = ""  # the commit's description
    additions: "dict[str, CommitOperationAdd]" = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)  # SHA-256 of the files that were sent

    def send(self, changes: Changes, state: Repository, *, create_pr: bool = False) -> tuple[str, str]:
        """Carry out `changes` by one commit on top of `state`; return it, and the ref it is on.

        Raises CheckpointError when a file changes meanwhile, and what `explained_write` makes of failures.
        """
        from huggingface_hub import CommitOperationCopy, CommitOperationDelete

        copies = [item for item in changes.new if isinstance(item.source, OnBranch)]
        here = [item for item in changes.new if not isinstance(item.source, OnBranch)]
        additions = self.upload(here, state.revision, create_pr=create_pr)
        for item in here:
            item.check_unchanged()
        operations: list[Any] = [
            *additions,
            *(CommitOperationCopy(item.name, item.name, src_revision=_branch(item)) for item in copies),
            *(CommitOperationDelete(name) for name in changes.stale),
        ]
        info = self.target.commit(
            operations, state.revision, state.commit, title=self.title, description=self.mark, create_pr=create_pr
        )
        return info.oid, info.pr_revision if create_pr else state.revision

    def upload(self, items: Sequence[Item], revision: str, *, create_pr: bool = False) -> "list[CommitOperationAdd]":
        """Store the content of files without committing them; their hashes are known after it."""
        with _unchanged([item.look() for item in items]):
            additions = [self._addition(item) for item in items]
            self.target.upload(additions, revision, create_pr=create_pr)  # which hashes while it reads
        self.hashes |= {addition.path_in_repo: addition.upload_info.sha256.hex() for addition in additions}
        for item in items:
            item.check_verified(self.hashes[item.name])
        return additions

    def _addition(self, item: Item) -> "CommitOperationAdd":
        from huggingface_hub import CommitOperationAdd

        if isinstance(item.source, bytes):
            return CommitOperationAdd(item.name, item.source)
        if item.name not in self.additions:
            held = item.size <= _HELD
            self.additions[item.name] = CommitOperationAdd(item.name, item.read() if held else str(item.source))
        return self.additions[item.name]


def _stale(names: set[str], state: Repository) -> Iterator[str]:
    return (name for name in state.sizes if name not in names and is_of_a_model(name))


def _is_there(item: Item, state: Repository) -> bool:
    digest = state.digests.get(item.name)
    if digest is None or state.sizes[item.name] != item.size or _digest_of(item, digest) != digest:
        return False
    if item.verified:
        item.check_verified(digest if len(digest) == SHA256_LETTERS else sha256_of(item.read()))
    return True


def _digest_of(item: Item, like: str) -> str:
    """Return the digest of a file of the kind that `like` is: SHA-256, or the SHA-1 that git calls it by."""
    if isinstance(item.source, OnBranch):
        return item.source.sha256
    if len(like) == SHA256_LETTERS:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % item.size, usedforsecurity=False)
    with item.open() as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def _branch(item: Item) -> str | None:
    return item.source.revision if isinstance(item.source, OnBranch) else None


@contextmanager
def _unchanged(items: Sequence[Item]) -> Iterator[None]:
    """Raise CheckpointError when a file has changed before or after it is read, be it that reading fails therefore."""

    def look() -> None:
        for item in items:
            item.check_unchanged()

    look()
    try:
        yield
    except (UpcycleError, OSError, ValueError):
        look()
        raise
    look()
