"""Which shard each write goes to, and in what order, so that copies can share blocks with their source.

A copied tensor shares the blocks of its source on a reflink file system when both offsets agree modulo the block
size. A write of `n` bytes moves the position from residue `r` to `(r + n) mod BLOCK`. So every copy is an edge of a
graph on residues, from its source offset's residue to the residue after it, and a shard in which all copies are
aligned is a walk along those edges. Most tensors are whole blocks (loops); the small ones (norms) are the edges
that lead from one loop to the next, as they did in the source file.
"""

from collections import defaultdict, deque
from collections.abc import Iterable

from upcycle.checkpoint.header import BLOCK
from upcycle.plan.plan import Shard, Write

SMALL = 2**20
"""Bytes below which a copy that fits no walk is not worth a shard of its own."""


def lay_out(writes: Iterable[Write], max_shard_size: int) -> tuple[Shard, ...]:
    """Distribute `writes` over shards of at most `max_shard_size` bytes each (a larger tensor stands alone)."""
    copies = [write for write in writes if write.copied]
    others = [write for write in writes if not write.copied]
    walks, strays = _walks(copies)
    groups: list[tuple[int | None, list[Write]]] = []
    for residue, walk in walks:
        groups += _cut(residue, walk, max_shard_size)
    size = _size(groups[-1][1]) if groups else 0
    for write in (*strays, *others):
        if not groups or size + write.nbytes > max_shard_size:
            groups.append((None, []))
            size = 0
        groups[-1][1].append(write)
        size += write.nbytes
    count = len(groups)
    return tuple(
        Shard(_shard_name(number, count), tuple(group), residue) for number, (residue, group) in enumerate(groups, 1)
    )


def _walks(copies: list[Write]) -> tuple[list[tuple[int, list[Write]]], list[Write]]:
    """Return aligned walks `(residue at the start, writes)` and the small copies that no walk could take."""
    edges: dict[int, tuple[deque[Write], deque[Write]]] = defaultdict(lambda: (deque(), deque()))
    for write in copies:
        if spec := write.copied:
            edges[spec.offset % BLOCK][write.nbytes % BLOCK != 0].append(write)
    walks: list[tuple[int, list[Write]]] = []
    for start in list(edges):
        while any(edges[start]):
            walks.append((start, _walk(start, edges)))
    if len(walks) == 1:
        return walks, []
    kept = [(residue, walk) for residue, walk in walks if _size(walk) >= SMALL]
    strays = [write for _, walk in walks if _size(walk) < SMALL for write in walk]
    return kept, strays


def _walk(residue: int, edges: dict[int, tuple[deque[Write], deque[Write]]]) -> list[Write]:
    """Follow edges from `residue` until none is left: all loops of a residue first, then one step onwards."""
    walk: list[Write] = []
    while any(edges[residue]):
        loops, steps = edges[residue]
        write = loops.popleft() if loops else steps.popleft()
        walk.append(write)
        residue = (residue + write.nbytes) % BLOCK
    return walk


def _cut(residue: int, walk: list[Write], limit: int) -> list[tuple[int | None, list[Write]]]:
    """Cut a walk into runs of at most `limit` bytes; each run starts at the residue where the one before ended."""
    runs: list[tuple[int | None, list[Write]]] = []
    size = 0
    for write in walk:
        if not runs or size + write.nbytes > limit:
            runs.append((residue, []))
            size = 0
        runs[-1][1].append(write)
        size += write.nbytes
        residue = (residue + write.nbytes) % BLOCK
    return runs


def _size(writes: list[Write]) -> int:
    return sum(write.nbytes for write in writes)


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
