"""Cuts the token stream into batches, ahead of the training and the same for every number of processes.

Every process reads the whole stream and takes its own sequences of each batch, so that it knows the number of target
tokens of the whole batch without asking, and a batch is the same however it is cut.

Shapes: B sequences of a micro-batch, S tokens of a sequence.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Thread

import numpy as np
import torch
from torch import Tensor

from upcycle.moe.loss import IGNORED
from upcycle.text.pack import Block
from upcycle.text.state import StreamState
from upcycle.text.stream import BlockStream

TARGETS = "next_ids"
"""Key of a micro-batch's targets: the token after each, or IGNORED. All other keys are arguments of the model."""

AHEAD = 2
"""Batches that are made ahead."""

PATIENCE = 0.2
"""Seconds to wait for a batch before looking whether it is still wanted."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a batch is cut into micro-batches and processes."""

    sequences: int  # B, of a micro-batch
    micro_batches: int
    processes: int
    rank: int

    @property
    def batch(self) -> int:
        """Sequences of the whole batch."""
        return self.sequences * self.micro_batches * self.processes

    def own(self, blocks: Sequence[Block]) -> list[Sequence[Block]]:
        """Return this process's micro-batches of a whole batch."""
        size = self.sequences
        starts = ((index * self.processes + self.rank) * size for index in range(self.micro_batches))
        return [blocks[start : start + size] for start in starts]


@dataclass(frozen=True, slots=True)
class Batch:
    """The sequences of one step that this process trains on."""

    micro_batches: list[dict[str, Tensor]]  # made by `as_tensors`
    targets: int  # tokens that the loss asks for, over all processes
    state: StreamState  # of the stream after this batch
    epochs: tuple[float, ...]  # how often each source has been read


def as_tensors(blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Return `input_ids`, TARGETS and, where a document begins inside a sequence, `position_ids`, each `(B, S)`.

    transformers keeps attention within documents where positions start again.
    """
    ids_BS = torch.from_numpy(np.stack([block.ids_T for block in blocks]).astype(np.int64))
    asked_BS = torch.from_numpy(np.stack([block.target_T for block in blocks]))
    next_BS = torch.full_like(ids_BS, IGNORED)
    next_BS[:, :-1] = torch.where(asked_BS, ids_BS, IGNORED)[:, 1:]
    tensors = {"input_ids": ids_BS, TARGETS: next_BS}
    positions_BS = torch.from_numpy(np.stack([block.position_T for block in blocks]).astype(np.int64))
    if (positions_BS[:, 1:] == 0).any():
        tensors["position_ids"] = positions_BS
    return tensors


def target_count(blocks: Sequence[Block]) -> int:
    """Return how many tokens of `blocks` the loss asks for."""
    return int(sum(block.target_T[1:].sum() for block in blocks))


class Batches:
    """The batches of a stream, without end; `close` ends the thread that makes them."""

    def __init__(self, stream: BlockStream, cut: Cut, *, pinned: bool) -> None:
        """Begin to make batches; `pinned` puts them where a GPU fetches them without waiting."""
        self._stream, self._cut, self._pinned = stream, cut, pinned
        self._ready: Queue[Batch | BaseException] = Queue(AHEAD)
        self._over = Event()
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def until(self, stopped: Callable[[], bool]) -> Iterator[Batch]:
        """Yield batches, while waiting for one until `stopped()`; raises what reading raises."""
        while True:
            try:
                made = self._ready.get(timeout=PATIENCE)
            except Empty:
                if stopped():
                    return
                continue
            if isinstance(made, BaseException):
                raise made
            yield made

    def close(self) -> None:
        """End the thread; one that hangs in reading is left behind, and ends with the process."""
        self._over.set()
        end = time.monotonic() + 10 * PATIENCE
        while self._thread.is_alive() and time.monotonic() < end:
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(0.05)

    def _work(self) -> None:
        try:
            while (made := self._make()) is not None:
                self._ready.put(made)
        except BaseException as error:  # to be raised where the batches are used
            self._ready.put(error)

    def _make(self) -> Batch | None:
        """Return the next batch, or None when no more are wanted."""
        blocks: list[Block] = []
        while len(blocks) < self._cut.batch and not self._over.is_set():
            blocks.append(self._stream.next())
        if self._over.is_set():
            return None
        micro_batches = [as_tensors(own) for own in self._cut.own(blocks)]
        if self._pinned:
            micro_batches = [{name: value.pin_memory() for name, value in one.items()} for one in micro_batches]
        return Batch(micro_batches, target_count(blocks), self._stream.state(), tuple(self._stream.epochs))
