"""Saves and loads the place that a stream of blocks has come to: tokens as safetensors, all else as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from upcycle.errors import CheckpointError
from upcycle.text.encode import Document
from upcycle.text.pack import Block
from upcycle.text.records import Cursor
from upcycle.text.shuffle import SourceState

JSON_NAME, TOKENS_NAME = "data.json", "data.safetensors"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class StreamState:
    """A place in a stream of blocks; taking one copies no tokens."""

    settings: dict[str, Any]
    """Of the stream; in a stream with other settings the place means nothing."""
    number: int
    """Blocks that were given out before."""
    sources: tuple[SourceState, ...]

    def to_files(self, directory: Path) -> None:
        """Write `data.json` and `data.safetensors`."""
        arrays: Arrays = {}
        for number, source in enumerate(self.sources):
            packed = _packed(source.waiting) | _stacked(source.buffer)
            arrays |= {f"{number}.{name}": array for name, array in packed.items()}
        fields = [
            {"files": item.files, "epoch": item.epoch, "blocks": item.blocks, "drawn": item.drawn,
             "cursor": asdict(item.cursor)}
            for item in self.sources
        ]  # fmt: skip
        value = {"settings": self.settings, "number": self.number, "sources": fields}
        (directory / JSON_NAME).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        (directory / TOKENS_NAME).write_bytes(save(arrays))

    @classmethod
    def from_files(cls, directory: Path) -> "StreamState":
        """Read what `to_files` wrote; raise CheckpointError when it is not all there."""
        try:
            value = json.loads((directory / JSON_NAME).read_bytes())
            arrays = load((directory / TOKENS_NAME).read_bytes())
            sources = tuple(_source(number, item, arrays) for number, item in enumerate(value["sources"]))
            return cls(value["settings"], value["number"], sources)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"the place in the data cannot be read ({error})", where=directory) from None


def _source(number: int, fields: dict[str, Any], arrays: Arrays) -> SourceState:
    own = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{number}.")}
    cursor = Cursor(**fields.pop("cursor"))
    return SourceState(**fields, cursor=cursor, waiting=tuple(_unpacked(own)), buffer=tuple(_unstacked(own)))


def _packed(documents: Sequence[Document]) -> Arrays:
    """Documents of any lengths, one after the other."""
    return {
        "waiting.ids": np.concatenate([np.zeros(0, np.int32), *(item.ids_T for item in documents)]),
        "waiting.target": np.concatenate([np.zeros(0, np.bool_), *(item.target_T for item in documents)]),
        "waiting.lengths": np.array([len(item.ids_T) for item in documents], np.int64),
        "waiting.continues": np.array([item.continues for item in documents], np.bool_),
    }


def _unpacked(arrays: Arrays) -> list[Document]:
    edges = np.cumsum(arrays["waiting.lengths"])[:-1]
    ids, targets = (np.split(arrays[f"waiting.{name}"], edges) for name in ("ids", "target"))
    return [Document(*parts) for parts in zip(ids, targets, arrays["waiting.continues"].tolist(), strict=False)]


def _stacked(blocks: Sequence[Block]) -> Arrays:
    if not blocks:
        return {}
    return {
        "buffer.ids": np.stack([block.ids_T for block in blocks]),
        "buffer.target": np.stack([block.target_T for block in blocks]),
        "buffer.position": np.stack([block.position_T for block in blocks]),
    }


def _unstacked(arrays: Arrays) -> list[Block]:
    if "buffer.ids" not in arrays:
        return []
    return list(map(Block, *(arrays[f"buffer.{name}"] for name in ("ids", "target", "position"))))
