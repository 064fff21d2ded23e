"""A plan: every tensor that is written, where each one comes from and where each one goes."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.header import DTYPE_BITS, TensorSpec, build_header, tensor_bytes
from upcycle.plan.sources import Blank, Copy, Fold, Source, describe, pieces, reads

_WIDER = {("F32", "F64"), ("F16", "F32"), ("F16", "F64"), ("BF16", "F32"), ("BF16", "F64")}
"""(dtype, a dtype that holds all its values)."""


MAX_TENSORS = 1_000_000
"""Ten times what the largest published mixtures of experts have; above it planning itself takes gigabytes."""


@dataclass(frozen=True, slots=True)
class Write:
    """One output tensor and its source."""

    name: str
    dtype: str  # a safetensors dtype
    shape: tuple[int, ...]
    role: str  # one of `families.parts.ROLES`
    source: Source

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return tensor_bytes(self.dtype, self.shape)

    @property
    def elements(self) -> int:
        """Number of parameters."""
        return prod(self.shape)

    @property
    def copied(self) -> TensorSpec | None:
        """The source tensor whose very bytes these are, or None when they are computed."""
        source = self.source
        return source.tensor if isinstance(source, Copy) and source.tensor.dtype == self.dtype else None

    @property
    def pieces(self) -> tuple[TensorSpec | int, ...] | None:
        """The source tensors whose very bytes these are, one after the other; a number is that of bytes of zeros.

        None when anything is computed.
        """
        found = pieces(self.source)
        if found is None or any(spec.dtype != self.dtype for spec in reads(self.source)):
            return None
        width = DTYPE_BITS[self.dtype] // 8
        return tuple(piece.count * width if isinstance(piece, Blank) else piece.tensor for piece in found)

    @property
    def hashed(self) -> bool:
        """Whether the receipt has its SHA-256: of what is computed or drawn, or put together of different pieces.

        Copies need none, nor do experts that are copies in one tensor: they are compared with what they are copies of.
        """
        return self.copied is None and (self.pieces is None or len(set(self.pieces)) == len(self.pieces))

    @property
    def lossless(self) -> bool:
        """Whether `dtype` holds every value of the tensors that are read, so that no cast loses anything.

        What is folded is computed, and only float32 or wider holds it to its last digits.
        """
        if isinstance(self.source, Fold) and self.dtype not in ("F32", "F64"):
            return False
        return all(s.dtype == self.dtype or (s.dtype, self.dtype) in _WIDER for s in reads(self.source))


@dataclass(frozen=True)
class Shard:
    """One output file: its writes in the order of their bytes."""

    name: str
    writes: tuple[Write, ...]
    residue: int | None  # offset of the data modulo the block size; None when no copy asks for one

    @cached_property
    def header(self) -> bytes:
        """The bytes before the data."""
        return build_header([(write.name, write.dtype, write.shape) for write in self.writes], residue=self.residue)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(write.nbytes for write in self.writes)

    def placed(self) -> list[tuple[Write, int]]:
        """Every write with its offset from the start of the file."""
        offset, result = len(self.header), []
        for write in self.writes:
            result.append((write, offset))
            offset += write.nbytes
        return result


@dataclass(frozen=True)
class Plan:
    """A whole conversion as data: the files to write and where each tensor's values come from.

    Fields from `layers` on tell people about the model; they do not count for the hash.
    """

    shards: tuple[Shard, ...]
    config: Mapping[str, Any]  # of the output model
    files: Mapping[str, Path]  # side files copied as they are: output name -> source
    sources: Mapping[str, Mapping[str, Any]]  # source files: name -> size and header sha256
    active_experts: int  # experts that one token uses, of `total_experts`
    total_experts: int
    layers: int
    sparse_layers: int  # of those, with experts
    cache_width: int  # keys and values that one token leaves in the cache, in all layers
    longest: int | None  # positions that the model promises
    hidden: int  # width of a token's state
    width: int  # neurons of an expert
    vocabulary: int  # rows of the embedding
    inexact: str | None = None  # why the output computes something else than the source, where it does
    reader_limits: tuple[str, ...] = ()  # what other programs do not compute of it, a sentence each
    notes: tuple[str, ...] = ()  # what transformers does otherwise with it, though logits agree, a sentence each

    @property
    def exact(self) -> bool:
        """Whether the output computes what the source computes."""
        return self.inexact is None

    @property
    def writes(self) -> list[Write]:
        """Every write, in file order."""
        return [write for shard in self.shards for write in shard.writes]

    @property
    def bytes_written(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the plan as canonical JSON: equal hashes mean equal weights and config, on any machine."""
        document = {
            "sources": self.sources,
            "config": self.config,
            "shards": [
                [shard.name, shard.residue, [[w.name, w.dtype, w.shape, describe(w.source)] for w in shard.writes]]
                for shard in self.shards
            ],
        }
        return sha256_of(json.dumps(document, sort_keys=True).encode())

    def weight_map(self) -> dict[str, str]:
        """Return tensor name -> shard name, sorted by tensor, as the index file has it."""
        return dict(sorted((write.name, shard.name) for shard in self.shards for write in shard.writes))


def source_files(shards: Iterable[Shard]) -> list[Path]:
    """Return every file that the writes of `shards` read, sorted."""
    return sorted({spec.path for shard in shards for write in shard.writes for spec in reads(write.source)})
