"""How much memory there is, and how many first layers of a model fit into it."""

import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterable, Mapping
from math import inf
from pathlib import Path

FLOAT_BYTES = 4
"""Of a value in float32."""

LOGITS_HELD = 4
"""Times that all logits are held at once when a model is run and compared."""

MARGIN = 1.1
"""Factor on the weights, for what an allocator cannot use again."""

PROCESS_BYTES = 500 * 10**6
"""Of a process that has imported torch, transformers and peft, without a model."""

UNKNOWN_BYTES = 4 * 2**30
"""Taken for available where the system cannot be asked (Windows)."""

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def available_memory(meminfo: Path = Path("/proc/meminfo"), limits: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that can be used before the system swaps or stops the container.

    On Linux that is what the kernel says (MemAvailable), and no more than the container has left (cgroup v2); elsewhere
    half of the machine's memory, or UNKNOWN_BYTES where the system does not tell it.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(meminfo), re.MULTILINE)
    if found:
        return int(min(int(found[1]) * 1024, _left_to_container(limits)))
    if sys.platform != "win32":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return UNKNOWN_BYTES


def _left_to_container(limits: Path) -> float:
    """Return a container's limit less what it uses, but for files that the kernel can drop; inf without a limit."""
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


def memory_needed(
    sizes: Iterable[tuple[str, int]], layers: int, beside: int = 0, value_bytes: int = FLOAT_BYTES
) -> int:
    """Return the bytes that a process holds at its peak when it runs the first `layers` layers of a model.

    `sizes` are the parameters of each tensor by name, `beside` the bytes of all that is neither weight nor program,
    `value_bytes` those of a parameter.
    """
    rest, each = 0, [0] * layers
    for name, count in sizes:
        layer = layer_of(name)
        if layer is None:
            rest += count
        elif layer < layers:
            each[layer] += count
    # the experts of a layer are there twice while they are stacked
    return PROCESS_BYTES + beside + round(MARGIN * value_bytes * (rest + sum(each) + max(each, default=0)))


def layers_that_fit(
    models: Iterable[Mapping[str, int]], layers: int, beside: int, available: int, value_bytes: int = FLOAT_BYTES
) -> int:
    """Return how many of the first of `layers` layers each of `models` can run in `available` bytes; 0 for none.

    A model is given as the parameters of its tensors by name; the rest is as for `memory_needed`.
    """
    sizes = [list(model.items()) for model in models]
    low, high = 0, layers
    while low < high:
        middle = (low + high + 1) // 2
        if max(memory_needed(each, middle, beside, value_bytes) for each in sizes) <= available:
            low = middle
        else:
            high = middle - 1
    return low


def give_back() -> None:
    """Hand the memory of deleted models back to the system, for another process to use."""
    gc.collect()  # peft's wrappers refer to one another
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None  # glibc's
    if trim:
        trim(0)


def gigabytes(size: float) -> str:
    """Return a number of bytes as text, in GB of 10^9."""
    return f"{size / 1e9:.3g} GB"
