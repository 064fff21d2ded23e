"""Reads a repository on the Hub at one commit: names, sizes and hashes of its files, and any range of their bytes."""

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from upcycle.checkpoint.strict_json import MAX_JSON_BYTES, parse_object
from upcycle.errors import CheckpointError, InputError, UnreachableError, UpcycleError

RETRIES = 4
"""Times a failed request is repeated, after 1, 2, 4 and 8 seconds: enough for a restart of a server, not an outage."""

_COMMIT = re.compile(r"[0-9a-f]{40}")  # becomes a path
_DIGEST = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True)
class Repository:
    """A model repository at one commit, so that a push meanwhile does not mix two versions."""

    model: str  # as the user wrote it, for messages
    name: str  # org/name
    revision: str  # as asked for: a branch, a tag or a commit
    commit: str
    sizes: Mapping[str, int]  # of every file, in bytes
    digests: Mapping[str, str] = field(default_factory=dict)  # of large files SHA-256, of others git's SHA-1, if told
    private: bool = False

    def url(self, file: str) -> str:
        """Return where `file` is resolved; large files are redirected from there to their storage."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.name, file, revision=self.commit)

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`, and let no more of them come over the network."""
        with explained(self.model), closing(self.stream(file, start, stop)) as pieces:
            return b"".join(pieces)

    def stream(
        self, file: str, start: int, stop: int, wait: Callable[[float], object] = time.sleep
    ) -> Generator[bytes, None, None]:
        """Yield the bytes from `start` up to `stop`; where a connection breaks, the next one goes on.

        `wait` lets some seconds pass before that, and returns True to give up instead. Raises the client's own errors;
        `explained` makes ours of them.
        """
        from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

        failures = 0
        while start < stop:
            problem: Exception = UpcycleError(f"{self.model}: {file} ends at byte {start:,} of {stop:,}")
            try:
                for data in _answer(self.url(file), start, stop):
                    start, failures = start + len(data), 0
                    yield data
            except HfHubHTTPError:
                raise  # an answer; those that pass are waited for below
            except HTTPError as error:
                problem = error
            if start < stop:
                failures += 1
                if failures > RETRIES or wait(2.0 ** (failures - 1)):
                    raise problem


def split_id(model: str) -> tuple[str, str]:
    """Return the repository and the revision of a Hub id, the branch `main` where none is given."""
    name, _, revision = model.partition("@")
    return name, revision or "main"


def open_repository(model: str) -> Repository:
    """Ask the Hub which commit a Hub id means and what is in it, in one request.

    Raises InputError when there is no such model or revision, or no access to it; UnreachableError when the Hub
    cannot be asked; UpcycleError when something answers that is no Hub.
    """
    from huggingface_hub import constants

    name, revision = split_id(model)
    with explained(model):
        raw = _ask(f"{constants.ENDPOINT}/api/models/{name}/revision/{quote(revision, safe='')}")
    try:
        info = parse_object(raw, model)
        siblings = info["siblings"]
        return Repository(
            model, name, revision, _commit(info["sha"]), dict(map(_named_size, siblings)),
            digests=dict(filter(None, map(_named_digest, siblings))), private=info.get("private") is True,
        )  # fmt: skip
    except (CheckpointError, ValueError, TypeError, KeyError):
        raise UpcycleError(f"{model}: {constants.ENDPOINT} does not answer as a Hub does") from None


def _ask(url: str) -> bytes:
    """Return the body of an answer of the API, cut off where no sound one goes on."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff  # type: ignore[attr-defined]

    with http_stream_backoff(
        "GET",
        url,
        params={"blobs": "true"},  # with sizes
        headers=build_hf_headers(),
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
        max_retries=RETRIES,
        retry_on_exceptions=(),  # without a network that is known at once
    ) as response:
        hf_raise_for_status(response)
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_JSON_BYTES:
                break
        return bytes(body[: MAX_JSON_BYTES + 1])


def _commit(sha: Any) -> str:
    if not isinstance(sha, str) or _COMMIT.fullmatch(sha) is None:
        raise ValueError(sha)
    return sha


def _named_size(file: Any) -> tuple[str, int]:
    """Return name and size of one of the files that the API lists; raise TypeError, KeyError or ValueError."""
    name, size = file["rfilename"], file["size"]
    if not isinstance(name, str) or type(size) is not int or not 0 <= size < 2**63:
        raise ValueError(name, size)
    return name, size


def _named_digest(file: Any) -> tuple[str, str] | None:
    """Return name and digest of one of the files that the API lists; None where it tells none."""
    lfs = file.get("lfs")
    digest = lfs.get("sha256") if isinstance(lfs, dict) else file.get("blobId")
    return (file["rfilename"], digest) if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None


@contextmanager
def explained(model: str) -> Iterator[None]:
    """Turn the client's exceptions into one line that names the model: InputError where the user can do something."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise InputError(
            f"{model}: access to this model must be asked for on the Hub", hint="then `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{model}: no such revision", expected="a branch, a tag or a full commit hash") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{model}: no such directory or Hub model", hint="private models need `hf auth login`"
        ) from None
    except OfflineModeIsEnabled:
        raise UnreachableError(f"{model}: the Hub must not be asked (HF_HUB_OFFLINE is set)") from None
    except HfHubHTTPError as error:
        raise _refusal(model, error.response.status_code) from None
    except (HTTPError, LocalEntryNotFoundError) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(cause, HfHubHTTPError):
            raise _refusal(model, cause.response.status_code) from None
        reason = str(cause).split("\n")[0] or type(cause).__name__
        raise UnreachableError(f"{model}: the Hub cannot be reached ({reason})") from None


def _refusal(model: str, status: int) -> UpcycleError:
    """Return our error for an HTTP error status: 401 and 403 are about the token, 429 and 500 pass."""
    if status in {401, 403}:
        return InputError(f"{model}: the Hub refuses access (status {status})", hint="`hf auth login` renews the token")
    kind = UnreachableError if status in {408, 429} or status >= 500 else UpcycleError
    return kind(f"{model}: the Hub fails (status {status})")


def _answer(url: str, start: int, stop: int) -> Iterator[bytes]:
    """Yield what one request gives of the bytes from `start` up to `stop`, and close the connection then.

    The client's session follows redirects, and takes the token along to the same host only.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff  # type: ignore[attr-defined]

    headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with http_stream_backoff(
        "GET",
        url,
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        max_retries=RETRIES,
        retry_on_exceptions=(),  # it would begin again in the middle of what has been yielded
    ) as response:
        hf_raise_for_status(response)
        partial = response.status_code == 206
        skip = 0 if partial else start  # a server that does not know Range begins at 0
        if partial and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise UpcycleError(f"{url}: another part of the file came than was asked for")
        for chunk in response.iter_bytes():
            data = chunk[skip : skip + stop - start]
            skip = max(0, skip - len(chunk))
            start += len(data)
            if data:
                yield data
            if start == stop:
                return
