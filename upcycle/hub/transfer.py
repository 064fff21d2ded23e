"""Downloads files from the Hub into the client's cache, each from where an earlier run stopped.

The client itself writes every download to a file of its own and deletes it when it fails, so a download that is
killed begins again. Here the bytes go to `blobs/ETAG.upcycle.incomplete`, which stays; the finished blob and the link
to it lie where the client looks for them. Of what the Hub says only a plain etag becomes part of a path, and large
files, whose etag is their SHA-256, are held against it.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Event
from typing import IO, Any

from upcycle.checkpoint.reader import is_plain_name
from upcycle.errors import UpcycleError
from upcycle.hub.repository import Repository

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[0-9A-Za-z]{1,128}")  # becomes a file name

_BLOCK = 2**20
"""Bytes of a file that are hashed at a time."""


class StoppedError(UpcycleError):
    """Raised in a download because another one failed or was interrupted."""


@dataclass(frozen=True)
class Transfer:
    """Files of one repository on their way into the cache."""

    repository: Repository
    advance: Callable[[int], object]  # is told the bytes that are there
    stop: Event
    began: Event = field(default_factory=Event)  # set when there is something that another run can go on from

    @property
    def folder(self) -> Path:
        """The repository's directory in the client's cache."""
        return _cache() / self._folder_name

    @property
    def _folder_name(self) -> str:
        return "models--" + self.repository.name.replace("/", "--")

    def fetch(self, file: str) -> None:
        """Bring `file` into the cache, unless it is there whole; raise the client's errors when it does not come."""
        from huggingface_hub import get_hf_file_metadata

        size, path = self.repository.sizes[file], self.folder / "snapshots" / self.repository.commit / file
        if _size(path) == size:
            self.advance(size)
            return
        metadata = get_hf_file_metadata(self.repository.url(file), retry_on_errors=True)
        etag = metadata.etag or ""
        if not is_plain_name(file) or _ETAG.fullmatch(etag) is None or metadata.size not in (None, size):
            raise UpcycleError(f"{self.repository.model}: {file}: the Hub does not say what it is")
        self._place(file, path, self.folder / "blobs" / etag, metadata.xet_file_data)

    def _place(self, file: str, path: Path, blob: Path, xet: Any) -> None:
        """Make `path` of a snapshot from its blob, which is downloaded if it is not there or has the wrong size."""
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        size, lock = self.repository.sizes[file], _cache() / ".locks" / self._folder_name / f"{blob.name}.lock"
        for folder in (path.parent, blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # the client's own, so that it does not load the same file beside this
            there = size in (_size(path), _size(blob))  # by another process, or as another file of the same content
            if there:
                self.advance(size)
            else:
                blob.unlink(missing_ok=True)
                self._complete(file, blob, xet)
            if _size(path) != size:
                _link(path, blob, new=not there)

    def refer(self) -> None:
        """Note which commit the branch or tag means, for days without a network; a cache that refuses it does no harm.

        It may be read-only, or hold the tag `v` as a file where `v/1` needs a directory.
        """
        path, commit = self.folder / "refs" / self.repository.revision, self.repository.commit.encode()
        if self.repository.revision == self.repository.commit:
            return
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        with suppress(OSError):
            if path.is_file() and path.read_bytes() == commit:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                new.write_bytes(commit)
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)

    def halt(self) -> None:
        """End what other threads are doing soon; what they have brought stays."""
        self.stop.set()
        if _xet_session.cache_info().currsize:
            _xet_session().sigint_abort()
            _xet_session.cache_clear()

    def _complete(self, file: str, blob: Path, xet: Any) -> None:
        """Make `blob` from what an earlier run left of it and the rest; raise UpcycleError for the wrong content.

        A crash may leave a beginning of the right length and the wrong bytes, and a storage may send wrong ones; so
        what does not have the hash that it is called by is fetched once more, all of it.
        """
        partial = blob.with_name(f"{blob.name}.upcycle.incomplete")
        hashed = _SHA256.fullmatch(blob.name) is not None
        if not hashed:
            partial.unlink(missing_ok=True)  # not a large file, and nothing to check a beginning by
        found = self._append(file, partial, xet)
        if hashed and found != blob.name:
            partial.unlink()
            self.advance(-self.repository.sizes[file])
            found = self._append(file, partial, None)  # by HTTP, in case the chunk store is to blame
        if hashed and found != blob.name:
            partial.unlink()
            raise UpcycleError(
                f"{self.repository.model}: {file}: another content came than the Hub announced; "
                f"its SHA-256 is {found[:16]}..., expected {blob.name[:16]}..."
            )
        partial.replace(blob)

    def _append(self, file: str, partial: Path, xet: Any) -> str:
        """Write what is missing at the end of `partial`, and return the SHA-256 of all of it.

        Every byte has its place, so a second writer does no harm.
        """
        size, digest = self.repository.sizes[file], hashlib.sha256()
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as target:
            self.began.set()
            for data in self._beginning(target, size):
                digest.update(data)
            self.advance(target.tell())
            for data in self._pieces(file, target.tell(), xet):
                view = memoryview(data)
                while view:
                    view = view[target.write(view) :]
                digest.update(data)
                self.advance(len(data))
            target.truncate(size)
            os.fsync(target.fileno())
        return digest.hexdigest()

    def _beginning(self, target: IO[bytes], size: int) -> Iterator[bytes]:
        """Yield what an earlier run has written, at most `size` bytes, and leave the file's position behind it."""
        while data := target.read(min(_BLOCK, size - target.tell())):
            yield data
            self._go_on()

    def _pieces(self, file: str, start: int, xet: Any) -> Iterator[bytes]:
        """Yield the bytes from `start` on: from the chunk store where the client would use it, else by HTTP."""
        size = self.repository.sizes[file]
        for data in _xet_stream(xet, start, size):
            start += len(data)
            yield data
            self._go_on()
        self._go_on()
        for data in self.repository.stream(file, start, size, self.stop.wait):
            yield data
            self._go_on()

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise StoppedError(f"{self.repository.model}: stopped")


def _xet_stream(xet: Any, start: int, size: int) -> Iterator[bytes]:
    """Yield bytes from the Hub's chunk store, which is faster than HTTP; end early where it cannot be used."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if xet is None or constants.HF_HUB_DISABLE_XET or start == size:
        return
    headers = build_hf_headers()
    try:
        import hf_xet  # type: ignore[import-untyped]  # comes with huggingface_hub on most platforms

        group = _xet_session().new_download_stream_group(
            token_refresh_url=xet.refresh_route,
            token_refresh_headers=headers,
            custom_headers={"user-agent": headers["user-agent"]},  # the Hub's token is for the Hub
        )
        yield from group.download_stream(hf_xet.XetFileInfo(xet.file_hash, size), start=start)
    except Exception:
        return  # whatever it was, HTTP goes on from here


@cache
def _xet_session() -> Any:
    """One for all files: each has a pool of threads."""
    import hf_xet

    return hf_xet.XetSession()


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _size(path: Path) -> int | None:
    """The size of a file, None where there is none, as behind a link that leads nowhere."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _link(path: Path, blob: Path, *, new: bool) -> None:
    """Put `path` in a snapshot: a relative link to `blob`, as the client makes it, in one step.

    Where there are no links, as on many a Windows, a `new` blob is moved there and an older one, which other snapshots
    may need, is copied; the client does the same. The unfinished link lies beside the blob, as no snapshot is to have
    it if the process ends here.
    """
    temporary = blob.with_name(f"{blob.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    if _is_linked(temporary, f"../../blobs/{blob.name}"):
        temporary.replace(path)
    elif new:
        blob.replace(path)
    else:
        shutil.copyfile(blob, temporary)
        temporary.replace(path)


def _is_linked(path: Path, target: str) -> bool:
    """Make a link, and return whether that is possible here and not switched off."""
    from huggingface_hub import constants

    if getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False):  # older clients do not have it
        return False
    try:
        path.symlink_to(target)
    except OSError:
        return False
    return True
