"""Packs documents into training sequences of one length, in their order and without padding.

Positions restart with every document, by which transformers keeps attention within each document.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upcycle.text.encode import Document


@dataclass(frozen=True, slots=True)
class Block:
    """One training sequence of T tokens."""

    ids_T: NDArray[np.int32]
    target_T: NDArray[np.bool_]
    """The loss asks for this token, given those before it in its document."""
    position_T: NDArray[np.int32]
    """Restarts at 0 with every document, so that attention keeps to its document."""


class Packer:
    """Collects documents and cuts blocks from them.

    The rest of a document that does not fit goes into the next block, where it counts as another document: its
    position restarts at 0, and its first token there is no target, for nothing comes before it.
    """

    def __init__(self, seq_len: int, waiting: Iterable[Document] = ()) -> None:
        """Begin with the documents that wait, which another packer of the same stream had left."""
        self.seq_len = seq_len
        self.waiting = deque(waiting)
        self.tokens = sum(len(document.ids_T) for document in self.waiting)

    def add(self, document: Document) -> None:
        """Add a document at the end."""
        if len(document.ids_T):
            self.waiting.append(document)
            self.tokens += len(document.ids_T)

    def take(self) -> Block | None:
        """Return the next block, or None until there are tokens enough."""
        return self._block() if self.tokens >= self.seq_len else None

    def take_rest(self, padding: int) -> Block | None:
        """Return the waiting tokens as a last block, padded with a token that is no target; None without a target."""
        if not any(document.target_T.any() for document in self.waiting):
            return None
        missing = self.seq_len - self.tokens
        self.add(Document(np.full(missing, padding, np.int32), np.zeros(missing, np.bool_)))
        block = self._block()
        return block if block.target_T.any() else None

    def _block(self) -> Block:
        ids: list[NDArray[np.int32]] = []
        targets: list[NDArray[np.bool_]] = []
        positions: list[NDArray[np.int32]] = []
        room, position = self.seq_len, 0
        while room:
            document = self._cut(room)
            count = len(document.ids_T)
            continues = document.continues and bool(ids)
            position = position if continues else 0
            ids.append(document.ids_T)
            targets.append(document.target_T if continues else _without_first(document.target_T))
            positions.append(np.arange(position, position + count, dtype=np.int32))
            room, position = room - count, position + count
        self.tokens -= self.seq_len
        return Block(np.concatenate(ids), np.concatenate(targets), np.concatenate(positions))

    def _cut(self, count: int) -> Document:
        """Take up to `count` tokens of the first document."""
        document = self.waiting.popleft()
        if len(document.ids_T) > count:
            document, rest = document.split(count)
            self.waiting.appendleft(rest)
        return document


def _without_first(target_T: NDArray[np.bool_]) -> NDArray[np.bool_]:
    target_T = target_T.copy()
    target_T[0] = False
    return target_T
