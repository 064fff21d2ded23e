"""How many first layers of two models fit into memory, and an adapter cut to them.

The models run one after the other, in float32.
"""

import ctypes
import gc
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from math import inf
from pathlib import Path

from upcycle.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter
from upcycle.checkpoint.header import build_header
from upcycle.checkpoint.reader import CONFIG_FILE, SINGLE_FILE
from upcycle.plan.compute import encoded_blocks
from upcycle.plan.plan import Plan

FLOAT_BYTES = 4

MARGIN = 1.1
"""Of the weights, for what an allocator cannot use again."""

PROCESS_BYTES = 500 * 10**6
"""Of a process that has imported torch, transformers and peft, without a model."""

UNKNOWN_BYTES = 4 * 2**30
"""Taken for available where the system cannot be asked (Windows)."""

CHUNK = 4 * 2**20
"""Bytes copied at a time."""

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def available_memory(meminfo: Path = Path("/proc/meminfo"), limits: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that can be used before the system swaps or a container is stopped.

    On Linux what the kernel says (MemAvailable), and no more than the container has left (cgroup v2); elsewhere half
    of the memory there is, and UNKNOWN_BYTES where that is not told either.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(meminfo), re.MULTILINE)
    if found:
        return int(min(int(found[1]) * 1024, _left_to_container(limits)))
    if sys.platform != "win32":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return UNKNOWN_BYTES


def _left_to_container(limits: Path) -> float:
    """The limit less what is in use, but for files that the kernel would let go of; infinite without a limit."""
    try:
        limit, used = (int(_text(limits / f"memory.{name}")) for name in ("max", "current"))
        parts = dict(line.split() for line in _text(limits / "memory.stat").splitlines())
        return max(0, limit - used + int(parts["inactive_file"]) + int(parts["active_file"]))
    except (ValueError, KeyError):  # no file, or "max"
        return inf


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def layer_of(name: str) -> int | None:
    """Return the layer that a tensor belongs to; None for embeddings, the last norm and the head."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def memory_needed(sizes: Iterable[tuple[str, int]], layers: int, beside: int = 0) -> int:
    """Return the bytes that a process holds which runs the first `layers` of a model, at its peak.

    `sizes` are the parameters of each of its tensors, `beside` the bytes of all that is neither weight nor program.
    """
    rest, each = 0, [0] * layers
    for name, count in sizes:
        layer = layer_of(name)
        if layer is None:
            rest += count
        elif layer < layers:
            each[layer] += count
    # the experts of a layer are there twice while they are stacked
    return PROCESS_BYTES + beside + round(MARGIN * FLOAT_BYTES * (rest + sum(each) + max(each, default=0)))


def layers_that_fit(models: Iterable[Mapping[str, int]], layers: int, beside: int, available: int) -> int:
    """Return how many of the first of `layers` layers each of `models` can run in `available` bytes; 0 for none.

    A model is given as the parameters of its tensors by name.
    """
    sizes = [list(model.items()) for model in models]
    low, high = 0, layers
    while low < high:
        middle = (low + high + 1) // 2
        if max(memory_needed(each, middle, beside) for each in sizes) <= available:
            low = middle
        else:
            high = middle - 1
    return low


def give_back() -> None:
    """Return the memory of models that are no longer referred to: to the system, not only to this process."""
    gc.collect()  # peft's wrappers refer to one another
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None  # glibc's
    if trim:
        trim(0)


def cut_adapter(adapter: Adapter, layers: int, directory: Path) -> None:
    """Write the adapter of the first `layers` layers to `directory`."""
    config = {**adapter.config, "num_experts": adapter.config["num_experts"][:layers]}
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    kept = [spec for name, spec in adapter.tensors.items() if (layer_of(name) or 0) < layers]
    with (directory / ADAPTER_WEIGHTS).open("wb") as out:
        out.write(build_header([(spec.name, spec.dtype, spec.shape) for spec in kept]))
        for spec in kept:
            with spec.path.open("rb") as file:
                file.seek(spec.offset)
                for start in range(0, spec.nbytes, CHUNK):
                    out.write(file.read(min(CHUNK, spec.nbytes - start)))


def write_layers(plan: Plan, layers: int, directory: Path) -> None:
    """Write what a plan would of the first `layers` layers into one file, for a moment; its config is the whole one."""
    writes = [write for write in plan.writes if (layer_of(write.name) or 0) < layers]
    with (directory / SINGLE_FILE).open("wb") as file:
        file.write(build_header([(write.name, write.dtype, write.shape) for write in writes]))
        for write in writes:
            for data in encoded_blocks(write):
                file.write(data)
    (directory / CONFIG_FILE).write_text(json.dumps(dict(plan.config)), encoding="utf-8")
