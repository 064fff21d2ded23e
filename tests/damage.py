"""Ways to damage a model: each returns what does it to a directory."""

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import edit_json, raw_safetensors
from tests.models import SMALL
from upcycle.checkpoint.header import read_header

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
SHARDS = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False, **SMALL}
EVIL = "\x1b[2J\x07\n" + "x" * 9000  # clears a terminal, rings, starts a line, and goes on for more than a screen
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 1234\n"

Specs = Mapping[str, tuple[str, tuple[int, ...]]]
Damage = Callable[[Path], object]
Run = Callable[..., tuple[int, str]]
Entries = dict[str, Any]


class Case(NamedTuple):
    """How to damage a sound model, and what is then said; MODEL stands for its directory."""

    damage: Damage
    message: str


# -- ways to damage a model -------------------------------------------------------------------------------------------


def write(name: str, data: bytes) -> Damage:
    return lambda model: (model / name).write_bytes(data)


def size(name: str, change: int) -> Damage:
    return lambda model: os.truncate(model / name, (model / name).stat().st_size + change)


def remove(*names: str) -> Damage:
    def damage(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return damage


def fields(name: str = CONFIG, /, **changes: Any) -> Damage:
    return lambda model: edit_json(model / name, **changes)


def nested(name: str) -> Damage:
    return write(name, b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def recoded(name: str, encoding: str) -> Damage:
    return lambda model: (model / name).write_bytes((model / name).read_text().encode(encoding))


def twice(name: str, key: str) -> Damage:
    """Say the first thing about `key` in a JSON file a second time, before all else."""
    return lambda model: (model / name).write_bytes(b'{"%s": 0, ' % key.encode() + (model / name).read_bytes()[1:])


def places(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the weight map of the index."""

    def damage(model: Path) -> None:
        index = json.loads((model / INDEX).read_bytes())
        change(index["weight_map"])
        (model / INDEX).write_text(json.dumps(index))

    return damage


def entries(change: Callable[[Entries], Any], name: str = WEIGHTS) -> Damage:
    """Change the header of a safetensors file and leave its data."""

    def damage(model: Path) -> None:
        data = (model / name).read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:start])
        change(header)
        raw_safetensors(model / name, header, data[start:])

    return damage


def header(text: bytes) -> Damage:
    return lambda model: raw_safetensors(model / WEIGHTS, text)


def tensors(change: Callable[[Entries], Any]) -> Damage:
    """Change the tensors of a file, given as name -> (dtype, shape), and lay them out anew."""

    def damage(model: Path) -> None:
        specs = {name: (spec.dtype, spec.shape) for name, spec in read_header(model / WEIGHTS).tensors.items()}
        change(specs)
        lay_out(model / WEIGHTS, specs)

    return damage


def replaced(replace: Callable[[str, Path], Any], name: str) -> Damage:
    """Have something else than a file under `name`, made by `replace(kept, path)`: the file is now called `kept`."""

    def damage(model: Path) -> None:
        kept = model.parent / "kept"
        (model / name).rename(kept) if (model / name).exists() else kept.touch()
        replace(str(kept), model / name)

    return damage


def twice_in_header(name: str) -> Damage:
    """Say about a tensor what is so, twice."""

    def damage(model: Path) -> None:
        data = (model / WEIGHTS).read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        entry = json.dumps(json.loads(data[8:start])[name])
        raw_safetensors(model / WEIGHTS, f'{{"{name}": {entry}, '.encode() + data[9:start], data[start:])

    return damage


def odd_link(model: Path) -> None:
    """A link out whose target could write over a terminal."""
    outside = model.parent / EVIL[:200]
    (model / CONFIG).rename(outside)
    (model / CONFIG).symlink_to(outside)


def all_of(*steps: Damage) -> Damage:
    return lambda model: [step(model) for step in steps]


def link(target: str, path: Path) -> None:
    path.symlink_to(target)


def loop(_: str, path: Path) -> None:
    path.symlink_to(path.name)


def pipe(_: str, path: Path) -> None:
    os.mkfifo(path)


def folder(_: str, path: Path) -> None:
    path.mkdir()


def socket(_: str, path: Path) -> None:
    os.mknod(path, 0o140600)


def lay_out(path: Path, specs: Specs) -> None:
    """Write a safetensors file of zeros."""
    from upcycle.checkpoint.header import build_header, tensor_bytes

    text = build_header([(name, dtype, shape) for name, (dtype, shape) in specs.items()])
    path.write_bytes(text + bytes(sum(tensor_bytes(dtype, shape) for dtype, shape in specs.values())))


def linear(parts: Specs, *, keep: bool = False) -> Callable[[Entries], Any]:
    """Store every projection as a quantiser would: under its name with other endings, and other dtypes."""

    def change(specs: Entries) -> None:
        for name in [name for name in specs if "_proj." in name]:
            stem = name.removesuffix("weight")
            if not keep:
                del specs[name]
            specs |= {stem + ending: part for ending, part in parts.items()}

    return change


def cast(dtype: str) -> Callable[[Entries], Any]:
    return lambda specs: specs.update({name: (dtype, specs[name][1]) for name in specs if "_proj." in name})


GPTQ = {"qweight": ("I32", (4, 48)), "qzeros": ("I32", (1, 6)), "scales": ("F16", (1, 48)), "g_idx": ("I32", (32,))}
AWQ = {"qweight": ("I32", (32, 6)), "qzeros": ("I32", (1, 6)), "scales": ("F16", (1, 48))}
NF4 = {
    "weight": ("U8", (768, 1)),
    "weight.absmax": ("F32", (24,)),
    "weight.quant_map": ("F32", (16,)),
    "weight.quant_state.bitsandbytes__nf4": ("U8", (90,)),
}
FP8 = {"weight_scale_inv": ("F32", (1, 1))}
INT8 = {"SCB": ("F32", (48,)), "weight_format": ("U8", ())}
