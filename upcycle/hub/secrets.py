"""Refuses to publish the user's access token: in a file, however it is written there, in a title or in a name."""

import re
from collections.abc import Iterator

from upcycle.checkpoint.header import LENGTH_BYTES, MAX_HEADER_BYTES
from upcycle.errors import InputError
from upcycle.hub.contents import Contents, Item

_PIECE = 4_000_000
_GGUF_HEAD = 64_000_000
"""Bytes before the weights of a GGUF file, which have no length of their own: the largest tokenizers take a quarter."""
_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be")
_ESCAPED = re.compile(rb"\\u00([0-7][0-9a-fA-F])")  # as JSON may write any letter
_LONGEST = len(r"\u0000")  # that one letter of a token can take


def refuse_secrets(contents: Contents) -> None:
    """Raise InputError when the token is in a file that would be published, or in its name; of weights, in their head.

    Raises CheckpointError when a file has changed since it was checked.
    """
    token = _token()
    for item in contents.items if token else ():
        refuse_secret_text("the name of a file", item.name)
        if any(_holds(piece, token) for piece in _pieces(item, _LONGEST * len(token))):
            raise InputError("holds your access token, and would be published", where=contents.directory / item.name)


def refuse_secret_text(what: str, text: str | None) -> None:
    """Raise InputError when the token is in a text that would be published; `what` is, say, "--message"."""
    token = _token()
    if token and text and _holds(text.encode(errors="backslashreplace"), token):
        raise InputError(f"{what} holds your access token, and would be published")


def _token() -> str:
    from huggingface_hub import get_token

    return get_token() or ""


def _holds(data: bytes, token: str) -> bool:
    plain = _ESCAPED.sub(lambda letter: bytes([int(letter[1], 16)]), data)
    return token.encode() in plain or any(token.encode(encoding) in data for encoding in _ENCODINGS)


def _pieces(item: Item, overlap: int) -> Iterator[bytes]:
    """Yield what is looked at, each piece with the end of the one before it."""
    with item.open() as file:
        left, before = item.size, b""
        if item.name.endswith(".gguf"):
            left = _GGUF_HEAD
        elif item.name.endswith(".safetensors"):
            before = file.read(LENGTH_BYTES)
            left = min(int.from_bytes(before, "little"), MAX_HEADER_BYTES)
        while left > 0 and (data := file.read(min(_PIECE, left))):
            yield before + data
            left -= len(data)
            before = (before + data)[-overlap:]
