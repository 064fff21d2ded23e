"""Turns the records of a source into tokenised documents, from any place in the source on."""

from collections.abc import Callable, Iterator

from upcycle.text.draw import held_out
from upcycle.text.encode import Document, Encoder
from upcycle.text.records import Cursor, Record, Source, Text

BATCH_SIZE, BATCH_RECORDS = 2**19, 256
"""Characters and records that are tokenised in one call, at most; where a batch ends changes no token."""

Keep = Callable[[int], bool]
"""Says of the number of a record whether it is read."""


class Documents:
    """The documents of a source on one side of the held-out split: those to train on, or those to measure on."""

    def __init__(self, source: Source, encoder: Encoder, keep: Keep) -> None:
        """Read nothing yet."""
        self.source, self.encoder, self.keep = source, encoder, keep

    def read(self, at: Cursor) -> Iterator[tuple[Document, Cursor]]:
        """Yield the documents after a place, each with the place after it."""
        for batch in self._batches(at):
            for record, document in zip(batch, self.encoder.encode(batch), strict=True):
                yield (document if self._whole(record) else Document(document.ids_T, document.target_T)), record.after

    def _batches(self, at: Cursor) -> Iterator[list[Record]]:
        batch: list[Record] = []
        size = 0
        for record in self.source.read(at):
            if self.keep(record.unit):
                batch.append(record)
                size += record.size
            if size >= BATCH_SIZE or len(batch) == BATCH_RECORDS:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _whole(self, record: Record) -> bool:
        """Whether the record before is on this side too; of a long text the piece before may be held out."""
        begins = not isinstance(record.content, Text) or record.content.starts
        return begins or self.keep(record.unit - 1)


def training_side(seed: int, source: int, fraction: float) -> Keep:
    """Return the function that says which records of a source are trained on: those that are not held out."""
    held = held_out(seed, source, fraction)
    return lambda unit: not held(unit)
