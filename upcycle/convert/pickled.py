"""A pickled checkpoint (`pytorch_model.bin`) as a source: read as tensors once, into a cache of safetensors.

A pickle is a program. torch's `weights_only` runs no more of it than rebuilds tensors; anything else in the file is
refused, not skipped.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upcycle.checkpoint.header import check_name
from upcycle.checkpoint.reader import (
    CHAT_TEMPLATE_FILES,
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    PICKLED_FILE,
    PICKLED_INDEX,
    SINGLE_FILE,
    TOKENIZER_FILES,
    Directory,
    check_present,
    present_files,
    read_weight_map,
)
from upcycle.convert.ingest import cache_directory
from upcycle.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def unpickled(directory: Path) -> Path:
    """Return a directory with the checkpoint of `directory` as safetensors, made on the first call.

    That is `directory` itself where it holds safetensors, or nothing that is known. Raises CheckpointError for a file
    that holds more than tensors.
    """
    files = Directory(directory)
    if files.has(SINGLE_FILE) or files.has(INDEX_FILE) or not (files.has(PICKLED_INDEX) or files.has(PICKLED_FILE)):
        return directory
    shards = _shards(files)
    target = cache_directory() / "pickled" / f"{directory.resolve().name}-{_identity(shards)}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="unfinished-", dir=target.parent))
        try:
            _convert(shards, scratch)
            names = (CONFIG_FILE, GENERATION_FILE, *TOKENIZER_FILES, *CHAT_TEMPLATE_FILES)
            for path in present_files(directory, names):
                shutil.copyfile(path, scratch / path.name)
            scratch.chmod(0o755)  # private until now, as mkdtemp makes it
            scratch.replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _shards(files: Directory) -> list[Path]:
    """The pickled files of a checkpoint, checked to be there and to lie in it."""
    names = [PICKLED_FILE]
    if files.has(PICKLED_INDEX):
        names = sorted(set(read_weight_map(files, PICKLED_INDEX, ".bin").values()))
        check_present(files, names)
    return list(present_files(files.place, tuple(names)))


def _identity(shards: list[Path]) -> str:
    """Return twelve hexadecimal digits that change when a file does."""
    beside = sorted(shards[0].parent.glob("*.json"))  # config and tokenizer are copied too
    facts = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in (*shards, *beside)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _convert(shards: list[Path], target: Path) -> None:
    """Write every pickled file as a safetensors file, one at a time, and the index."""
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    for number, path in enumerate(shards, 1):
        name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = _read(path)
        twice = sorted(tensors.keys() & weight_map.keys())
        if twice:
            raise CheckpointError(f"tensor {twice[0]!r} is in two shards", found=f"{weight_map[twice[0]]} and {name}")
        weight_map.update(dict.fromkeys(tensors, name))
        # Tied weights share memory in a pickle, which safetensors does not express.
        save_file({key: value.clone().contiguous() for key, value in tensors.items()}, target / name, {"format": "pt"})
        (target / name).chmod(0o644)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (target / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> "dict[str, Tensor]":
    import torch

    value = _load(path)
    if not isinstance(value, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        raise CheckpointError("is not a dictionary of tensors", where=path)
    for name, tensor in value.items():
        check_name(str(name), path)
        if not isinstance(name, str) or tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(f"tensor {name!r} is not a plain one", where=path, found=str(tensor.layout))
    return dict(value)


def _load(path: Path) -> Any:
    """Load a pickle as tensors; files of torch before 1.6, which cannot be mapped, are read whole."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # pickle, zip and torch raise many kinds here
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            "holds more than tensors, or is damaged; it was not run",
            where=path,
            found=ascii(reason[0])[:200] if reason else type(error).__name__,
        ) from None


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
