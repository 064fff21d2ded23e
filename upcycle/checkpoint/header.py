"""Reads safetensors headers strictly, and writes them so that the data starts at a chosen offset.

A file is `8-byte little-endian N | N bytes of JSON | data`. The JSON may end in spaces, so a writer can choose
where the data starts; `build_header` uses that to keep tensors at the same offset modulo the block size as in
their source, which is what lets file systems with reflinks share the blocks.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn

from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.scanner import Scanner
from upcycle.errors import CheckpointError, InputError
from upcycle.message import quoted

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

MAX_HEADER_BYTES = 100_000_000
"""The limit that safetensors sets."""
MAX_METADATA = 1024
"""Entries of `__metadata__`; programs write a handful."""
MAX_NAME = 512
"""Characters of a tensor's name; models stay below 200, and messages quote names."""
LENGTH_BYTES = 8
"""Bytes of the length word."""

_METADATA = "__metadata__"
_KEPT = {dtype: dtype for dtype in DTYPE_BITS}  # one string for all tensors of a dtype
_LFS_MAGIC = b"version https://git-lfs"
_MAX_SIZE = 2**63 - 1
_MAX_DIMENSIONS = 64  # of torch and NumPy

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor -> its safetensors dtype and its shape."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a file: its name, dtype, shape and where its bytes are."""

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


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes that a tensor of `dtype` and `shape` takes, rounded up to a whole byte."""
    return -(-prod(shape) * DTYPE_BITS[dtype] // 8)


def rows_of(spec: TensorSpec, first: int, end: int) -> TensorSpec:
    """Return where the rows `first` to `end - 1` of a tensor lie: its slice along the first axis, bytes in a row."""
    row = spec.nbytes // spec.shape[0]
    return replace(
        spec,
        shape=(end - first, *spec.shape[1:]),
        offset=spec.offset + first * row,
        nbytes=(end - first) * row,
    )


def read_header(path: Path) -> Header:
    """Read and check the header of the file `path`; see `parse_header` and `header_length` for what is refused."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = header_length(file.read(64), size, path)
            raw = bytearray(LENGTH_BYTES + length)
            file.seek(0)
            file.readinto(raw)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=path) from None
    return parse_header(raw, size, path)


def header_length(start: bytes, size: int, path: Path) -> int:
    """Return the length of the JSON of a file of `size` bytes that begins with `start` (64 bytes are enough).

    Raises CheckpointError for a Git LFS pointer, and for a length that the file or the format cannot have: nothing
    is allocated for it.
    """
    refuse_pointer(start, path, "the weights")
    if len(start) < LENGTH_BYTES:
        raise CheckpointError("too short", where=path, found=f"{size} bytes", expected="a safetensors file")
    length: int = struct.unpack("<Q", start[:LENGTH_BYTES])[0]
    if length > MAX_HEADER_BYTES:
        raise CheckpointError("header too large", where=path, found=f"{length} bytes", expected="at most 100 MB")
    if length + LENGTH_BYTES > size:
        raise CheckpointError(
            "header longer than the file",
            where=path,
            found=f"{size} bytes",
            expected=f"at least {length + LENGTH_BYTES}",
            hint="download the file again",
        )
    return length


def refuse_pointer(start: bytes, path: Path, content: str) -> None:
    """Raise CheckpointError when a file that begins with `start` is what git leaves in place of its `content`."""
    if start.startswith(_LFS_MAGIC):
        raise CheckpointError(
            f"is a Git LFS pointer, not {content}", where=path, hint="fetch the file itself with `git lfs pull`"
        )


def parse_header(raw: bytes | bytearray, size: int, path: Path) -> Header:
    """Check `raw`, the length word and the JSON of a file of `size` bytes; `path` is what messages and specs name.

    Raises CheckpointError when the file would be truncated or have trailing bytes, when tensors overlap or leave
    holes, for duplicate keys, and for a tensor named with control characters or a path. In memory it takes about three
    times the header for names as models have them, and at most six times for the shortest there can be.
    """
    specs = list(_specs(Scanner(raw, LENGTH_BYTES, path), len(raw)))
    # Empty tensors before the one that starts where they are. Twice, for a key that is a pair would be made for each.
    specs.sort(key=attrgetter("nbytes"))
    specs.sort(key=attrgetter("offset"))
    tensors: dict[str, TensorSpec] = {}
    for spec in specs:
        if tensors.setdefault(spec.name, spec) is not spec:
            _refuse_duplicate(spec.name, path)
    _check_layout(specs, path, len(raw), size)
    return Header(path, size, sha256_of(raw), tensors)


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
    if len(text) > MAX_HEADER_BYTES:
        raise InputError(
            "too many tensors for one file",
            found=f"{len(tensors):,}",
            hint="a smaller --max-shard-size makes more files",
        )
    return struct.pack("<Q", len(text)) + text


def _specs(scanner: Scanner, data_start: int) -> Iterator[TensorSpec]:
    """Yield the tensors of a header in the order of its JSON."""
    if not scanner.at_object():
        raise CheckpointError("the header does not begin with an object", where=scanner.where)
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}  # most tensors share theirs with others
    metadata_seen = False
    for name in scanner.members():
        if name != _METADATA:
            yield _spec(name, scanner.flat(), scanner.where, data_start, shapes)
        elif metadata_seen:
            _refuse_duplicate(name, scanner.where)
        else:
            metadata_seen = True
            _check_metadata(scanner)
    scanner.end()


def _check_metadata(scanner: Scanner) -> None:
    """Refuse metadata that safetensors would refuse; nothing here uses it."""
    names: set[str] = set()
    strings = scanner.at_object()
    for name in scanner.members() if strings else ():
        if name in names:
            _refuse_duplicate(name, scanner.where)
        names.add(name)
        strings = scanner.skip_string()
        if not strings or len(names) > MAX_METADATA:
            break
    if not strings:
        raise CheckpointError("__metadata__ must map strings to strings", where=scanner.where)
    if len(names) > MAX_METADATA:
        raise CheckpointError("too much __metadata__", where=scanner.where, expected=f"at most {MAX_METADATA} entries")


def _refuse_duplicate(name: str, path: Path) -> NoReturn:
    raise CheckpointError(f"not valid JSON (duplicate key {quoted(name, 120)})", where=path)


def _spec(
    name: str, entry: Any, path: Path, data_start: int, shapes: dict[tuple[int, ...], tuple[int, ...]]
) -> TensorSpec:
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
    if not _fits(shape, DTYPE_BITS[dtype]) or prod(shape) * DTYPE_BITS[dtype] != (end - start) * 8:
        raise CheckpointError(
            "size does not match its shape",
            where=where,
            found=f"{end - start} bytes",
            expected=f"{DTYPE_BITS[dtype] / 8:g} bytes for each of the elements of {str(shape)[:80]}",
        )
    sizes = tuple(shape)
    return TensorSpec(name, _KEPT[dtype], shapes.setdefault(sizes, sizes), path, data_start + start, end - start)


def check_name(name: str, where: str | Path) -> None:
    """Raise CheckpointError unless `name` is printable, not overlong, and could never be taken for a path."""
    if len(name) > MAX_NAME:
        raise CheckpointError(
            "tensor name too long",
            where=where,
            found=f"{len(name):,} characters, {name[:40]!a} to begin with",
            expected=f"at most {MAX_NAME}",
        )
    if not name.isprintable() or not name or "/" in name or "\\" in name or ".." in name:
        raise CheckpointError("unsafe tensor name", where=where, found=quoted(name, 120))


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_SIZE for item in value)


def _fits(shape: list[int], bits: int) -> bool:
    """Whether the bytes stay below 2^63: stops early on absurd shapes, as safetensors does.

    A zero among the sizes changes nothing: NumPy multiplies the others and takes no more.
    """
    total = bits
    for size in shape:
        total *= size or 1
        if total > 8 * _MAX_SIZE:
            return False
    return True


def _check_layout(specs: Iterable[TensorSpec], path: Path, data_start: int, size: int) -> None:
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
