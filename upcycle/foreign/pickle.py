"""A pickled checkpoint (`pytorch_model.bin`) as a source: read as tensors once, into a cache of safetensors.

A pickle is a program. torch's `weights_only` runs no more of it than rebuilds tensors; anything else in the file is
refused, not skipped.
"""

import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from upcycle.checkpoint.header import check_name
from upcycle.checkpoint.reader import (
    CHAT_TEMPLATE_FILES,
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    PICKLED_FILE,
    PICKLED_INDEX,
    PICKLED_SUFFIXES,
    SINGLE_FILE,
    TOKENIZER_FILES,
    Directory,
    check_present,
    present_files,
    read_weight_map,
)
from upcycle.errors import CheckpointError
from upcycle.foreign.cache import cached
from upcycle.message import quoted

if TYPE_CHECKING:
    from torch import Tensor, dtype


MAX_SHARING = 4
"""Times that the tensors of a file may be larger than it: of a model, embeddings and head may share a storage."""

_SIDE_FILES = (CONFIG_FILE, GENERATION_FILE, *TOKENIZER_FILES, *CHAT_TEMPLATE_FILES)


def unpickled(directory: Path) -> Path:
    """Return a directory with the checkpoint of `directory` as safetensors, made on the first call.

    That is `directory` itself where it holds safetensors, or nothing that is known. Raises CheckpointError for a file
    that holds more than tensors.
    """
    files = Directory(directory)
    if files.has(SINGLE_FILE) or files.has(INDEX_FILE) or not _is_pickled(files):
        return directory
    index = _index(files)
    names = sorted(set(index.values())) or [PICKLED_FILE]
    check_present(files, names)
    shards, beside = present_files(directory, tuple(names)), present_files(directory, _SIDE_FILES)
    real = directory.resolve()
    kept = 3 if real.parent.name == "snapshots" else 1  # models--org--name/snapshots/REVISION: the receipt names it

    def make(scratch: Path) -> None:
        _convert(shards, index, scratch)
        for path in beside:
            shutil.copyfile(path, scratch / path.name)

    return cached("pickled", real, [*shards, *beside], Path(*real.parts[1:][-kept:]), make)


def _is_pickled(files: Directory) -> bool:
    """Whether there are pickled weights; raise CheckpointError for such as have names of other programs."""
    others = [name for name in files.names() if PurePath(name).suffix in PICKLED_SUFFIXES]
    if files.has(PICKLED_INDEX) or files.has(PICKLED_FILE) or not others:
        return files.has(PICKLED_INDEX) or files.has(PICKLED_FILE)
    raise CheckpointError(
        "holds pickled weights under other names than are read",
        where=files.place,
        found=quoted(others[0], 120),
        expected=f"{PICKLED_FILE} or {PICKLED_INDEX}",
    )


def _index(files: Directory) -> dict[str, str]:
    """Return tensor -> pickled file as the index has it; nothing where there is none."""
    if not files.has(PICKLED_INDEX):
        return {}
    weight_map = read_weight_map(files, PICKLED_INDEX, ".bin")
    if files.has(PICKLED_FILE) and set(weight_map.values()) != {PICKLED_FILE}:
        raise CheckpointError(
            f"both {PICKLED_FILE} and {PICKLED_INDEX} are there, and readers differ in which they load",
            where=files.place,
            hint="remove the one that is stale",
        )
    return weight_map


def _convert(shards: Sequence[Path], index: Mapping[str, str], target: Path) -> None:
    """Write every pickled file as a safetensors file, one at a time, and the index."""
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    for number, path in enumerate(shards, 1):
        name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = _read(path)
        strays = sorted(tensors.keys() ^ {key for key, file in index.items() if file == path.name}) if index else []
        if strays:
            raise CheckpointError(
                f"the shard and {PICKLED_INDEX} do not name the same tensors", where=path, found=strays[0]
            )
        weight_map.update(dict.fromkeys(tensors, name))
        # Tied weights share memory in a pickle, which safetensors does not express.
        save_file({key: x.detach().clone().contiguous() for key, x in tensors.items()}, target / name, {"format": "pt"})
    if len(shards) > 1:
        document = {"metadata": {}, "weight_map": weight_map}
        (target / INDEX_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> "dict[str, Tensor]":
    """Return the tensors of a pickled file, none of which is of a kind or a size that a checkpoint does not have."""
    import torch

    value = _load(path)
    if not isinstance(value, dict):
        raise CheckpointError("is not a dictionary of tensors", where=path, found=type(value).__name__)
    for name, tensor in value.items():
        if not isinstance(name, str):
            raise CheckpointError("is not a dictionary of tensors", where=path, found=f"a key {quoted(name, 60)}")
        check_name(name, path)
        if not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{name!r} is not a tensor", where=path, found=kind, hint=_HINTS.get(kind))
        _check_plain(name, tensor, path)
    _check_storages(value.values(), path)
    size, total = path.stat().st_size, sum(tensor.nbytes for tensor in value.values())
    if total > MAX_SHARING * size:
        raise CheckpointError(
            "the tensors are far larger than the file", where=path, found=f"{total:,} bytes in {size:,}"
        )
    return dict(value)


_HINTS = {"dict": "a training checkpoint: save the state_dict of the model alone"}
_HINTS["OrderedDict"] = _HINTS["dict"]


def _check_plain(name: str, tensor: "Tensor", path: Path) -> None:
    """A tensor of another layout, quantised or without data is no weight that could be copied."""
    import torch

    plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    found = tensor.dtype if tensor.is_quantized else "a nested tensor" if tensor.is_nested else tensor.layout
    if plain and tensor.device.type != "cpu":
        plain, found = False, f"device {tensor.device}"
    if plain and not (tensor.dtype.is_floating_point or tensor.dtype in _integers()):
        plain, found = False, tensor.dtype
    if not plain:
        raise CheckpointError(f"tensor {name!r} is not a plain one", where=path, found=str(found))


def _integers() -> "set[dtype]":
    import torch

    return {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def _load(path: Path) -> Any:
    """Load a pickle as tensors; files of torch before 1.6, which cannot be mapped, are read whole."""
    import torch

    zipped = _is_zip(path)
    try:
        if zipped and _is_compressed(path):
            raise CheckpointError("is compressed, which torch.save never does", where=path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Exception as error:  # pickle, zip and torch raise many kinds here
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            "holds more than tensors, or is damaged; it was not run",
            where=path,
            found=quoted(reason[0], 200) if reason else type(error).__name__,
        ) from None


def _check_storages(tensors: "Iterable[Tensor]", path: Path) -> None:
    """The storages are as long as their records: a mapped one that is longer would go on into other bytes."""
    if not _is_zip(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = Counter(member.file_size for member in archive.infolist() if "/data/" in member.filename)
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    strange = Counter(size for size in storages.values() if size) - records
    if strange:
        raise CheckpointError(
            "a tensor is longer than its record", where=path, found=f"{min(strange):,} bytes in none of that length"
        )


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _is_compressed(path: Path) -> bool:
    """Whether a member is: a mapped file is read as if none were, and gives other numbers."""
    with zipfile.ZipFile(path) as archive:
        return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
