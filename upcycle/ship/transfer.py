"""One file from the Hub into the client's cache, going on where an earlier run stopped.

The client itself writes every download to a file of its own and deletes it when it fails, so a download that is
killed begins again. Here the bytes go to `blobs/ETAG.upcycle.incomplete`, which stays; the finished blob lies where
the client looks for it, and the client makes the rest of its layout.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

from upcycle.errors import UpcycleError
from upcycle.ship.repository import Repository

_SHA256 = re.compile(r"[0-9a-f]{64}")


class StoppedError(UpcycleError):
    """Another part of the work failed or was interrupted, so this one ends as well."""


@dataclass(frozen=True)
class Transfer:
    """Files of one repository on their way into the cache."""

    repository: Repository
    advance: Callable[[int], object]  # is told the bytes that are there
    stop: Event

    @property
    def folder(self) -> Path:
        """The repository's directory in the client's cache."""
        return _cache() / self._folder_name

    @property
    def _folder_name(self) -> str:
        return "models--" + self.repository.name.replace("/", "--")

    def fetch(self, file: str) -> None:
        """Bring `file` into the cache, unless it is there; raise the client's errors when it does not come."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_download
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        size = self.repository.sizes[file]
        if (self.folder / "snapshots" / self.repository.commit / file).exists():
            self.advance(size)
            return
        metadata = get_hf_file_metadata(self.repository.url(file), retry_on_errors=True)
        etag = metadata.etag or ""
        if not etag.isalnum() or metadata.size not in (None, size):
            raise UpcycleError(f"{self.repository.model}: {file}: the Hub does not say what it is")
        blob, lock = self.folder / "blobs" / etag, _cache() / ".locks" / self._folder_name / f"{etag}.lock"
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # the client's own, so that it does not load the same file beside this
            if not blob.exists():
                self._complete(file, blob, metadata.xet_file_data)
        hf_hub_download(self.repository.name, file, revision=self.repository.commit)  # makes the link

    def refer(self) -> None:
        """Note which commit the branch or tag means, for days without a network."""
        path = self.folder / "refs" / self.repository.revision
        if self.repository.revision != self.repository.commit:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.{os.getpid()}.new")
            new.write_text(self.repository.commit)
            new.replace(path)

    def halt(self) -> None:
        """End what other threads are doing soon; what they have brought stays."""
        self.stop.set()
        if _xet_session.cache_info().currsize:
            _xet_session().sigint_abort()
            _xet_session.cache_clear()

    def _complete(self, file: str, blob: Path, xet: Any) -> None:
        """Make `blob` from what an earlier run left of it and the rest."""
        partial = blob.with_name(f"{blob.name}.upcycle.incomplete")
        if _SHA256.fullmatch(blob.name) is None:
            partial.unlink(missing_ok=True)  # not a large file, and nothing to check a beginning by
        resumed = partial.exists()
        self._append(file, partial, xet)
        # A crash may leave a beginning of the right length and the wrong bytes; the tag of a large file is its hash.
        if resumed and _sha256(partial) != blob.name:
            partial.unlink()
            self.advance(-self.repository.sizes[file])
            self._append(file, partial, xet)
        partial.replace(blob)

    def _append(self, file: str, partial: Path, xet: Any) -> None:
        """Write what is missing at the end of `partial`; every byte has its place, so a second writer does no harm."""
        size = self.repository.sizes[file]
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as target:
            start = min(target.seek(0, os.SEEK_END), size)
            target.seek(start)
            self.advance(start)
            for data in self._pieces(file, start, xet):
                view = memoryview(data)
                while view:
                    view = view[target.write(view) :]
                self.advance(len(data))
            target.truncate(size)
            os.fsync(target.fileno())

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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
