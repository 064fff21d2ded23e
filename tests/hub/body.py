"""The body of a request as it comes: in pieces, counted, broken off where a fault is planted."""

import io
from collections.abc import Iterator
from email.message import Message

from tests.hub.hub import Request

PIECE = 65536  # bytes


class StruckError(Exception):
    """The planted fault's number of bytes was read."""


class Body:
    """What a client sends; nothing of it is kept."""

    def __init__(self, stream: io.BufferedIOBase, headers: Message, record: Request) -> None:
        self.stream, self.record = stream, record
        self.chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        self.length = None if self.chunked else int(headers.get("Content-Length") or 0)  # bytes, if it is said
        self.stop: int | None = None  # bytes
        self._pieces = self._chunks() if self.chunked else self._exactly(self.length or 0)

    def __iter__(self) -> Iterator[bytes]:
        """Yield what is left; raises StruckError at `stop`, ConnectionAbortedError if the client is gone."""
        for piece in self._pieces:
            self.record.received += len(piece)
            yield piece
            if self.record.received == self.stop:
                raise StruckError

    def drain(self) -> None:
        """Read what is left, whatever it is; it is not counted."""
        for _ in self._pieces:
            pass

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.stream.readline().split(b";")[0] or b"0", 16):
            yield from self._exactly(size)
            self.stream.readline()
        while self.stream.readline().strip():
            pass

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            until = (
                PIECE if self.stop is None or self.record.received >= self.stop else self.stop - self.record.received
            )
            piece = self.stream.read(min(count, PIECE, until))
            if not piece:
                raise ConnectionAbortedError
            count -= len(piece)
            yield piece
