"""Writes and reads tensors of any shape and type in safetensors files: the state of an optimizer.

One tensor at a time passes through memory, where safetensors' own writer holds a copy of all. Names may not hold a
slash or two dots, which no reader of this project takes.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from upcycle.checkpoint.header import build_header, check_name, read_header
from upcycle.checkpoint.writer import write_all
from upcycle.errors import CheckpointError

DTYPES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32",
    torch.int64: "I64", torch.uint64: "U64", torch.float64: "F64", torch.complex64: "C64",
}  # fmt: skip
"""What safetensors calls the dtypes that torch has too."""

_NAMED = {name: dtype for dtype, name in DTYPES.items()}


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any shape, stride and device to the safetensors file `path`; what shares memory comes twice.

    Raises ValueError for a dtype that the format has not, CheckpointError for a name, OSError when the disk fails.
    """
    for name, tensor in tensors.items():
        check_name(name, path)
        if tensor.dtype not in DTYPES or tensor.layout is not torch.strided:
            raise ValueError(f"{path}: tensor {name!r}: safetensors has no {tensor.layout} {tensor.dtype}")
    # The widest first: readers view the bytes in place, which takes offsets that are multiples of the element's size.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header = build_header([(name, DTYPES[tensors[name].dtype], tuple(tensors[name].shape)) for name in ordered])
    with path.open("wb", buffering=0) as file:
        write_all(file, header)
        for name in ordered:
            write_all(file, _bytes(tensors[name]).numpy().data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU and in memory of their own.

    Raises CheckpointError when the file is not sound, or holds a dtype that torch has not.
    """
    tensors: dict[str, Tensor] = {}
    with path.open("rb") as file:
        for name, spec in read_header(path).tensors.items():
            if spec.dtype not in _NAMED:
                raise CheckpointError("dtype that torch has not", where=f"{path}: tensor {name!r}", found=spec.dtype)
            data = torch.empty(spec.nbytes, dtype=torch.uint8)
            file.seek(spec.offset)
            if file.readinto(data.numpy().data) != spec.nbytes:
                raise CheckpointError("truncated", where=path)
            tensors[name] = data.view(_NAMED[spec.dtype]).reshape(spec.shape)
    return tensors


def _bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor in the order of its elements, `(nbytes,)`, uint8, on the CPU."""
    whole = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return whole.reshape(-1).view(torch.uint8)
