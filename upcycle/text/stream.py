"""Makes training sequences without end from one source of text or a mixture, and those that are held out.

The order is a function of the seed: all processes read the same stream, and each takes its own share of a global batch.
The source of every block is drawn by the weights, which are therefore shares of the tokens, however long the sources
are: a short one is repeated more often. Weights that are not given are equal, for a stream does not know its length.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice

from upcycle.errors import InputError
from upcycle.text.documents import Documents, Keep, training_side
from upcycle.text.draw import RANGE, SOURCE, draw, held_out
from upcycle.text.encode import Encoder
from upcycle.text.overlap import check_measured, check_twice
from upcycle.text.pack import Block, Packer
from upcycle.text.records import Cursor
from upcycle.text.shuffle import ShuffledBlocks
from upcycle.text.sources import source_of
from upcycle.text.state import StreamState


class BlockStream:
    """Blocks of a mixture of sources. It never ends, and can go on from any place it was at."""

    def __init__(
        self,
        sources: Sequence[str],
        encoder: Encoder,
        *,
        seq_len: int,
        seed: int,
        weights: Sequence[float] = (),
        shuffle: int = 1024,
        held_out: float = 0.0,
        text_field: str = "text",
    ) -> None:
        """Raise InputError when a source does not exist, is empty, or is of no known kind; read no text yet."""
        self.seed, self.number = seed, 0
        self.edges = list(accumulate(weights or [1.0] * len(sources)))
        self.settings = {
            "seed": seed, "seq_len": seq_len, "shuffle": shuffle, "held_out": held_out, "sources": len(sources),
            "weights": list(weights), "text_field": text_field,
        }  # fmt: skip
        self.sources = [
            ShuffledBlocks(
                Documents(source_of(name, text_field), encoder, training_side(seed, number, held_out)),
                seq_len=seq_len, seed=seed, number=number, shuffle=shuffle,
            )
            for number, name in enumerate(sources)
        ]  # fmt: skip
        check_twice([source.documents.source for source in self.sources], held_out=held_out > 0)

    def look(self) -> None:
        """Encode the first record of each source, so that what is to be said of them is said before the work begins."""
        for source in self.sources:
            documents = source.documents
            documents.encoder.encode(list(islice(documents.source.read(Cursor()), 1)))

    def next(self) -> Block:
        """Return the next block; raise InputError when the text is wrong, or too short for one block."""
        share = draw(self.seed, SOURCE, 0, self.number) / RANGE * self.edges[-1]
        block = self.sources[min(bisect_right(self.edges, share), len(self.sources) - 1)].next()
        self.number += 1
        return block

    def state(self) -> StreamState:
        """Return the place before the next block; this is cheap, for no tokens are copied."""
        return StreamState(self.settings, self.number, tuple(source.state() for source in self.sources))

    def restore(self, state: StreamState) -> None:
        """Go on from a place; raise InputError when it belongs to another stream, or a source has changed."""
        for name, expected in state.settings.items():
            if self.settings.get(name) != expected:
                raise InputError(
                    f"the checkpoint is of other data: {name}", found=self.settings.get(name), expected=expected
                )
        for source, before in zip(self.sources, state.sources, strict=True):
            source.restore(before)
        self.number = state.number

    @property
    def epochs(self) -> tuple[int, ...]:
        """How often each source was given out completely."""
        return tuple(source.epoch for source in self.sources)


def held_out_blocks(
    sources: Sequence[str],
    encoder: Encoder,
    *,
    seq_len: int,
    seed: int,
    fraction: float | None,
    limit: int,
    text_field: str = "text",
    trained: BlockStream | None = None,
) -> list[Block]:
    """Return up to `limit` blocks to measure the loss on, of all sources in turn, each from its start and in order.

    `fraction` is the share that `BlockStream(held_out=fraction)` leaves out; None takes everything, of files that are
    there for this. The last block of a source is padded with EOS, which is no target and keeps to itself.
    Raises InputError when there is nothing, or when what is there for this is in the stream that is `trained` on too.
    """
    opened = [source_of(name, text_field) for name in sources]
    if trained is not None and fraction is None:
        check_measured([source.documents.source for source in trained.sources], opened)
    streams = [
        _in_order(Documents(source, encoder, _measured(seed, number, fraction)), seq_len)
        for number, source in enumerate(opened)
    ]
    blocks = list(islice(_in_turn(streams), limit))
    if not blocks:
        hint = None if fraction is None else "a larger --eval-split, more text, or --eval-data"
        raise InputError("no text to measure the loss on", where=", ".join(sources), hint=hint)
    return blocks


def _measured(seed: int, source: int, fraction: float | None) -> Keep:
    return (lambda _: True) if fraction is None else held_out(seed, source, fraction)


def _in_order(documents: Documents, seq_len: int) -> Iterator[Block]:
    packer = Packer(seq_len)
    for document, _ in documents.read(Cursor()):
        packer.add(document)
        while (block := packer.take()) is not None:
            yield block
    if (block := packer.take_rest(documents.encoder.eos)) is not None:
        yield block


def _in_turn(streams: list[Iterator[Block]]) -> Iterator[Block]:
    while streams:
        for stream in list(streams):
            if (block := next(stream, None)) is None:
                streams.remove(stream)
            else:
                yield block
