"""Gives out the blocks of one source, epoch after epoch, shuffled in a buffer.

The buffer runs empty at the end of an epoch, so that every block of an epoch comes before any of the next one; only the
last tokens, too few for a block, wait and open the next.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from upcycle.errors import InputError
from upcycle.text.documents import Documents
from upcycle.text.draw import SHUFFLE, draw
from upcycle.text.encode import Document
from upcycle.text.pack import Block, Packer
from upcycle.text.records import Cursor


@dataclass(frozen=True, slots=True)
class SourceState:
    """The place that reading a source has come to. It shares its arrays with the stream; nobody writes to them."""

    files: list[list[str]]
    epoch: int = 0
    blocks: int = 0  # of this epoch
    drawn: int = 0  # since the beginning
    cursor: Cursor = Cursor()
    waiting: tuple[Document, ...] = ()
    buffer: tuple[Block, ...] = ()


_ENOUGH = 256
"""Sequences without a token in the loss after which no more is expected."""


class ShuffledBlocks:
    """The blocks of one source; the order is a function of `seed` and of the source's number."""

    def __init__(self, documents: Documents, *, seq_len: int, seed: int, number: int, shuffle: int) -> None:
        """Read nothing yet; `shuffle` is the number of blocks in the buffer, 0 or 1 keeps the order."""
        self.documents = documents
        self.seq_len, self.seed, self.number, self.capacity = seq_len, seed, number, max(shuffle, 1)
        self._set(SourceState(documents.source.files))

    def next(self) -> Block:
        """Return the next block; raise InputError when an epoch has no block."""
        self._fill()
        while not self.buffer:
            self._begin_epoch()
            self._fill()
        if not self.asks and (self.ended or len(self.buffer) >= _ENOUGH):
            raise InputError(
                "no token of the text is in the loss", where=self.documents.source.name,
                found=f"{len(self.buffer)} sequences without an answer to learn from",
            )  # fmt: skip
        place = draw(self.seed, SHUFFLE, self.number, self.drawn) % len(self.buffer)
        self.drawn += 1
        self.buffer[place], self.buffer[-1] = self.buffer[-1], self.buffer[place]
        return self.buffer.pop()

    def state(self) -> SourceState:
        """Return the place before the next block."""
        waiting, buffer = tuple(self.packer.waiting), tuple(self.buffer)
        files = self.documents.source.files
        return SourceState(files, self.epoch, self.blocks, self.drawn, self.cursor, waiting, buffer)

    def restore(self, state: SourceState) -> None:
        """Go on from a place; raise InputError when the files of the source have changed."""
        now = self.documents.source.files
        if state.files != now:
            raise InputError(
                "the data changed since the checkpoint", where=self.documents.source.name,
                found=_described([file for file in now if file not in state.files]),
                expected=_described([file for file in state.files if file not in now]),
                hint="put the files back, or begin anew with --overwrite",
            )  # fmt: skip
        self._set(state)

    def _set(self, state: SourceState) -> None:
        self.epoch, self.blocks, self.drawn = state.epoch, state.blocks, state.drawn
        self.asks = state.drawn > 0  # a sequence has come in which the loss asks for a token
        self.ended = False  # should nothing come after the cursor, `_fill` finds out
        self.cursor, self.buffer = state.cursor, list(state.buffer)
        self.packer = Packer(self.seq_len, state.waiting)
        self.incoming: Iterator[tuple[Document, Cursor]] = self.documents.read(self.cursor)

    def _fill(self) -> None:
        while not self.ended and len(self.buffer) < self.capacity:
            if (block := self.packer.take()) is not None:
                self.buffer.append(block)
                self.blocks += 1
                self.asks = self.asks or bool(block.target_T.any())
            elif (following := next(self.incoming, None)) is not None:
                document, self.cursor = following
                self.packer.add(document)
            else:
                self.ended = True

    def _begin_epoch(self) -> None:
        if not self.blocks:
            raise InputError(
                "the text is too short", where=self.documents.source.name, found=f"{self.packer.tokens} tokens",
                expected=f"at least one sequence of {self.seq_len}", hint="a smaller --seq-len, or more text",
            )  # fmt: skip
        self.epoch, self.ended, self.blocks, self.cursor = self.epoch + 1, False, 0, Cursor()
        self.incoming = self.documents.read(self.cursor)


def _described(files: list[list[str]]) -> str:
    shown = ", ".join(f"{name} ({size})" for name, size, *_ in files[:3]) + (" ..." if len(files) > 3 else "")
    return shown or "nothing"
