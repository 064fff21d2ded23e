"""The records that sources yield: a text, a prompt with its completion, or a conversation, each with its place."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Text:
    """A document, or a piece of one: of a long file not more than a piece is in memory."""

    text: str
    starts: bool = True  # whether the document begins here ...
    ends: bool = True  # ... and whether it ends here


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and its completion; only the completion is in the loss."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as chat templates take it; only the answers of the assistant are in the loss."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None  # JSON schemas of what the assistant may call
    skipped: frozenset[int] = frozenset()  # numbers of messages, from 0, that the loss leaves out


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between two records, from which reading goes on without reading what came before."""

    file: int = 0  # number in the source
    offset: int = 0  # bytes (unpacked, of a .gz), or rows of a parquet file
    line: int = 0  # lines before it
    unit: int = 0  # records of the source before it
    inner: dict[str, Any] = field(default_factory=dict)  # the state of a stream of `datasets`, as JSON data


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a source, or a piece of a long text; it is trained on or held out as a whole."""

    content: Text | Pair | Chat
    where: str  # file:line, for errors
    unit: int  # number in the source
    after: Cursor

    @property
    def size(self) -> int:
        """Characters in it, roughly."""
        match self.content:
            case Text(text):
                return len(text)
            case Pair(prompt, completion):
                return len(prompt) + len(completion)
            case Chat(messages):
                return sum(len(message.get("content", "")) for message in messages)


class Source(Protocol):
    """A file, a directory or a data set, which records are read from."""

    name: str
    files: list[list[str]]
    """Name, size and hash of each file; a run is only resumed when they are the same."""

    def read(self, at: Cursor) -> Iterator[Record]:
        """Yield the records after a place."""
        ...
