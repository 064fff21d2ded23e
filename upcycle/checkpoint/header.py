"""The safetensors header: read strictly, write with the data placed at a chosen offset.

A file is `8-byte little-endian N | N bytes of JSON | data`. The JSON may end in spaces, so a writer can choose
where the data starts; `build_header` uses that to keep tensors at the same offset modulo the block size as in
their source, which is what lets file systems with reflinks share the blocks.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from upcycle.checkpoint.strict_json import MAX_JSON_BYTES, parse_object
from upcycle.errors import CheckpointError, InputError

BLOCK = 4096
"""Bytes per file-system block, the unit in which XFS and btrfs share copies."""

DTYPE_BITS: Mapping[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits per element of every safetensors dtype."""

_LFS_MAGIC = b"version https://git-lfs"
_MAX_SIZE = 2**63 - 1
_MAX_DIMENSIONS = 64  # of torch and NumPy


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies on disk."""

    name: str
    dtype: str  # a key of DTYPE_BITS
    shape: tuple[int, ...]
    path: Path
    offset: int  # bytes from the start of the file
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of elements, 1 for a scalar."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed safetensors header."""

    path: Path
    size: int  # bytes of the whole file
    sha256: str  # of the length word and the JSON; identifies names, dtypes, shapes and layout
    tensors: dict[str, TensorSpec]  # in the order of their data
    metadata: dict[str, str]


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes that a tensor of `dtype` and `shape` takes, rounded up to a whole byte."""
    return -(-prod(shape) * DTYPE_BITS[dtype] // 8)


def read_header(path: Path) -> Header:
    """Read and check the header of `path`.

    Raises CheckpointError, before allocating more than the header, when the file is truncated, is a Git LFS
    pointer, has trailing bytes, overlaps, holes or duplicate keys, or names a tensor with control characters
    or a path in it.
    """
    raw, size = _read_raw(path)
    entries = parse_object(raw[8:], path)
    metadata = _metadata(entries.pop("__metadata__", {}), path)
    specs = [_spec(name, entry, path, len(raw)) for name, entry in entries.items()]
    specs.sort(key=lambda spec: (spec.offset, spec.nbytes))
    _check_layout(specs, path, len(raw), size)
    return Header(path, size, hashlib.sha256(raw).hexdigest(), {spec.name: spec for spec in specs}, metadata)


def build_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    *,
    residue: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the length word and JSON for `(name, dtype, shape)` laid out one after the other.

    The data starts at an offset congruent to `residue` modulo `BLOCK`; with None, at a multiple of 8.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    position = 0
    for name, dtype, shape in tensors:
        end = position + tensor_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    modulus, target = (8, 0) if residue is None else (BLOCK, residue)
    text += b" " * ((target - 8 - len(text)) % modulus)
    if len(text) > MAX_JSON_BYTES:
        raise InputError(
            "too many tensors for one file",
            found=f"{len(tensors):,}",
            hint="a smaller --max-shard-size makes more files",
        )
    return struct.pack("<Q", len(text)) + text


def _read_raw(path: Path) -> tuple[bytes, int]:
    """Return the length word with the JSON, and the size of the file."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            if len(start) == 8 and not _LFS_MAGIC.startswith(start):
                length = struct.unpack("<Q", start)[0]
                _check_length(length, size, path)
                return start + file.read(length), size
            rest = file.read(len(_LFS_MAGIC) - 8)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=path) from None
    if start + rest == _LFS_MAGIC:
        raise CheckpointError(
            "is a Git LFS pointer, not the weights", where=path, hint="fetch the file itself with `git lfs pull`"
        )
    raise CheckpointError("too short", where=path, found=f"{size} bytes", expected="a safetensors file")


def _check_length(length: int, size: int, path: Path) -> None:
    if length > MAX_JSON_BYTES:
        raise CheckpointError("header too large", where=path, found=f"{length} bytes", expected="at most 100 MB")
    if length + 8 > size:
        raise CheckpointError(
            "header longer than the file", where=path, found=f"{size} bytes", expected=f"at least {length + 8}"
        )


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError("__metadata__ must map strings to strings", where=path)
    return value


def _spec(name: str, entry: Any, path: Path, data_start: int) -> TensorSpec:
    check_name(name, path)
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError("malformed entry", where=where, expected="exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError("unknown dtype", where=where, found=repr(dtype)[:40])
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError("shape and data_offsets must be lists of non-negative integers", where=where)
    if len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(
            "too many dimensions", where=where, found=len(shape), expected=f"at most {_MAX_DIMENSIONS}"
        )
    start, end = offsets
    if not _fits(shape) or prod(shape) * DTYPE_BITS[dtype] != (end - start) * 8:
        raise CheckpointError(
            "size does not match its shape",
            where=where,
            found=f"{end - start} bytes",
            expected=f"{DTYPE_BITS[dtype] / 8:g} bytes for each of the elements of {str(shape)[:80]}",
        )
    return TensorSpec(name, dtype, tuple(shape), path, data_start + start, end - start)


def check_name(name: str, where: str | Path) -> None:
    """Raise CheckpointError unless `name` is printable and could never be taken for a path."""
    if not name.isprintable() or not name or "/" in name or "\\" in name or ".." in name:
        raise CheckpointError("unsafe tensor name", where=where, found=ascii(name)[:120])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_SIZE for item in value)


def _fits(shape: list[int]) -> bool:
    """Whether the running product stays in 63 bits: stops early on absurd shapes, as safetensors does."""
    elements = 1
    for size in shape:
        elements *= size
        if elements > _MAX_SIZE:
            return False
    return True


def _check_layout(specs: Sequence[TensorSpec], path: Path, data_start: int, size: int) -> None:
    """Tensors must tile the data from its start to the end of the file, without overlaps or holes."""
    position = data_start
    for spec in specs:
        if spec.offset != position:
            kind = "overlaps the tensor before it" if spec.offset < position else "leaves a hole before it"
            raise CheckpointError(
                kind, where=f"{path}: tensor {spec.name!r}", found=f"offset {spec.offset}", expected=position
            )
        position += spec.nbytes
    if position > size:
        raise CheckpointError(
            "truncated", where=path, found=f"{size} bytes", expected=position, hint="download the file again"
        )
    if position < size:
        raise CheckpointError("trailing bytes after the last tensor", where=path, found=size, expected=position)
