"""Turns failures of uploads and commits into one line that names the repository, without token or signed URL."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from upcycle.errors import InputError, UnreachableError, UpcycleError

LOGIN = "`hf auth login` stores a token that may write, or HF_TOKEN holds one"

_XET_REFUSAL = re.compile(r"HTTP status client error \((401|403)\b")
"""Matches what the chunk store's client says of a token without rights; it has no exception type for that."""


@contextmanager
def explained_write(repo: str) -> Iterator[None]:
    """Turn what the client raises into errors of ours.

    Raises InputError where the user can do something, UnreachableError for what may pass.
    """
    try:
        yield
    except UpcycleError:
        raise
    except Exception as error:
        meaning = _meaning(repo, _cause(error))
        if meaning is None:
            raise
        raise meaning from None


def _meaning(repo: str, error: BaseException) -> UpcycleError | None:
    """Return our error for an exception of the client, the chunk store or the network; None for any other exception."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    if isinstance(error, HfHubHTTPError):
        return _refusal(repo, error)
    status = _xet_status(error)
    if status:
        return _not_allowed(repo, status)
    said = redacted(" ".join(str(error).split()))[:200] or type(error).__name__
    if isinstance(error, HTTPError | ConnectionError | TimeoutError) or type(error) is RuntimeError:
        return UnreachableError(f"{repo}: {constants.ENDPOINT} is not reached, or breaks off ({said})")
    if isinstance(error, ValueError) and "metadata in README.md" in said:
        return InputError(f"{repo}: the Hub refuses the model card ({said})", hint="mend the head of README.md")
    if isinstance(error, ValueError | LookupError | TypeError | AttributeError):  # what the client makes of an answer
        kind = type(error).__name__
        return UnreachableError(f"{repo}: {constants.ENDPOINT} does not answer as a Hub does ({kind})")
    return None


def _xet_status(error: BaseException) -> int | None:
    """The status with which the chunk store refuses a token."""
    if isinstance(error, PermissionError) and type(error).__module__.startswith("hf_xet"):
        return 403
    refused = _XET_REFUSAL.search(str(error))
    return int(refused[1]) if refused else None


def redacted(text: str) -> str:
    """Return `text` without the user's token, and without what follows the path of a URL, which may be a signature."""
    from huggingface_hub import get_token

    token = get_token()
    plain = text.replace(token, "...") if token else text
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", plain)


def _cause(error: BaseException) -> BaseException:
    """The client wraps the failure of one file of several in a RuntimeError."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def _refusal(repo: str, error: Any) -> UpcycleError:
    """Return our error for an answer with an HTTP error status."""
    status = error.response.status_code
    said = redacted(error.server_message or "")[:200]
    words = f" ({said})" if said else ""
    if status in (401, 403):
        return _not_allowed(repo, status, words)
    if status == 404:
        return InputError(f"{repo}: there is no such repository or revision, or this token may not see it{words}")
    if status in (408, 409, 412, 429) or status >= 500:
        return UnreachableError(f"{repo}: the Hub fails (status {status}){words}")
    return InputError(f"{repo}: the Hub refuses this (status {status}){words}")


def _not_allowed(repo: str, status: int, words: str = "") -> InputError:
    if status == 401:
        return InputError(f"{repo}: the Hub does not know this token{words}", hint=LOGIN)
    return InputError(
        f"{repo}: this token may not write here{words}", hint="it needs the right to write, in this namespace"
    )
