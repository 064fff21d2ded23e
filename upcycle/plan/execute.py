"""Carrying out a plan: into a staging directory, as many shards side by side as there are workers.

Every write knows its offset before anything is written, so workers need no order among themselves: each opens the
files it needs, moves or computes its bytes, and hashes what it computed. The calling thread waits for the disk, so
that the next shards are copied meanwhile.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event

from upcycle.checkpoint.header import BLOCK, TensorSpec
from upcycle.checkpoint.staging import Staging
from upcycle.checkpoint.writer import copy_range, shares_blocks, write_all
from upcycle.errors import StagingError
from upcycle.plan.plan import Plan, Shard, Write

Advance = Callable[[int], None]
Hashes = dict[str, str]  # tensor -> SHA-256


class _StoppedError(Exception):
    """Raised inside a worker when another one failed or the user interrupted."""


def execute(plan: Plan, staging: Staging, *, workers: int, advance: Advance) -> dict[str, str]:
    """Write every shard of `plan` that `staging` does not hold yet.

    `advance` is called with bytes as they are done, from worker threads. Returns the SHA-256 of every tensor that
    was computed rather than copied. Raises OSError when the disk fails; finished shards stay for --resume.
    """
    stop = Event()

    def guarded_advance(count: int) -> None:
        if stop.is_set():
            raise _StoppedError
        advance(count)

    jobs: dict[Future[Hashes], Shard] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            for shard in plan.shards:
                if _is_done(shard, staging):
                    advance(shard.size)
                else:
                    jobs.update(dict.fromkeys(_submit(shard, staging.path, pool, guarded_advance), shard))
            _collect(jobs, staging)
        except BaseException:  # Ctrl-C too: the pool must not go on writing
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return {name: digest for hashes in staging.done.values() for name, digest in sorted(hashes.items())}


def check_space(plan: Plan, staging: Staging) -> None:
    """Raise StagingError when the disk cannot hold what is left to write; shared blocks cost nothing."""
    left = [shard for shard in plan.shards if not _is_done(shard, staging)]
    needed = sum(shard.size for shard in left)
    sharing = {path for path in plan.source_files() if shares_blocks(path, staging.path)}
    needed -= sum(_shared_bytes(shard, sharing) for shard in left)
    # Unfinished shards are written over, so what they take now is free for them.
    held = sum(_disk_bytes(staging.path / shard.name) for shard in left)
    free = shutil.disk_usage(staging.path).free + held
    if needed > free:
        raise StagingError(
            f"{staging.path.parent}: not enough space; found {free / 1e9:.2f} GB free, expected {needed / 1e9:.2f} GB"
            f"{' beyond what is shared with the source' if sharing else ''}; choose an OUT on another disk"
        )


def _is_done(shard: Shard, staging: Staging) -> bool:
    """Whether the journal has the shard and it is there: --overwrite may have been killed while it cleared."""
    path = staging.path / shard.name
    return shard.name in staging.done and path.is_file() and path.stat().st_size == shard.size


def _disk_bytes(path: Path) -> int:
    """Bytes of disk that a file takes; none where it is not there, or the platform does not say (Windows)."""
    return getattr(path.stat(), "st_blocks", 0) * 512 if path.exists() else 0


def _shared_bytes(shard: Shard, sharing: set[Path]) -> int:
    """Bytes of the whole blocks that the shard has in common with its sources, were all of them shareable."""
    shared = 0
    for write, offset in shard.placed():
        spec = write.copied
        if spec and spec.path in sharing and spec.offset % BLOCK == offset % BLOCK:
            shared += max(0, (offset + write.nbytes) // BLOCK - -(-offset // BLOCK)) * BLOCK
    return shared


def _submit(shard: Shard, directory: Path, pool: ThreadPoolExecutor, advance: Advance) -> list[Future[Hashes]]:
    """Make the file of a shard and hand its work to the pool: all copies as one job, every computed tensor as another.

    Threads that write to one file wait for each other, so copies gain nothing from more than one.
    """
    path = directory / shard.name
    with path.open("wb", buffering=0) as file:
        write_all(file, shard.header)
        file.truncate(shard.size)
    advance(len(shard.header))
    copies, computed = [], []
    for write, offset in shard.placed():
        if write.copied:
            copies.append((write.copied, offset))
        else:
            computed.append((write, offset))
    jobs = [pool.submit(_copy, copies, path, advance)] if copies else []
    return jobs + [pool.submit(_compute, write, path, offset, advance) for write, offset in computed]


def _collect(jobs: Mapping[Future[Hashes], Shard], staging: Staging) -> None:
    """Sync and record every shard when its last job is done, while the workers go on with the next ones."""
    left = Counter(shard.name for shard in jobs.values())
    hashes: dict[str, Hashes] = {name: {} for name in left}
    for job in as_completed(jobs):
        name = jobs[job].name
        hashes[name].update(job.result())
        left[name] -= 1
        if not left[name]:
            with (staging.path / name).open("rb+") as file:
                os.fsync(file.fileno())
            staging.record(name, hashes.pop(name))


def _copy(copies: list[tuple[TensorSpec, int]], path: Path, advance: Advance) -> Hashes:
    """Copy tensors to their offsets in `path`; there is nothing to hash."""
    with path.open("rb+", buffering=0) as target:
        for spec, offset in copies:
            with spec.path.open("rb", buffering=0) as source:
                copy_range(source, spec.offset, target, offset, spec.nbytes, advance)
    return {}


def _compute(write: Write, path: Path, offset: int, advance: Advance) -> Hashes:
    """Compute one tensor at its offset in `path`; return the SHA-256 of its bytes under its name."""
    from upcycle.plan.compute import encoded_blocks  # NumPy is met only when something is computed

    digest = hashlib.sha256()
    with path.open("rb+", buffering=0) as target:
        target.seek(offset)
        for data in encoded_blocks(write):
            write_all(target, data)
            digest.update(data)
            advance(len(data))
    return {write.name: digest.hexdigest()}
