"""Carrying out a plan: into a staging directory, as many shards side by side as there are workers.

Every write knows its offset before anything is written, so workers need no order among themselves: each opens the
files it needs, moves or computes its bytes, and hashes what it computed. The calling thread waits for the disk, so
that the next shards are copied meanwhile.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event
from typing import BinaryIO

from upcycle.checkpoint.header import BLOCK, TensorSpec
from upcycle.checkpoint.journal import Part
from upcycle.checkpoint.staging import Staging
from upcycle.checkpoint.writer import BUFFER, copy_range, shares_blocks, sync_file, write_all
from upcycle.errors import InputError, StagingError
from upcycle.plan.plan import Plan, Shard, Write, source_files

Advance = Callable[[int], None]
Hashes = dict[str, str]  # tensor -> SHA-256


class _StoppedError(Exception):
    """Raised inside a worker when another one failed or the user interrupted."""


def share(plan: Plan, part: Part) -> list[Shard]:
    """Return the shards that a part of the work writes, about as many bytes for each part: largest first, each to the
    part that has the least.
    """
    shares: list[list[Shard]] = [[] for _ in range(part.count)]
    loads = [0] * part.count
    for shard in sorted(plan.shards, key=lambda shard: (-shard.size, shard.name)):
        least = loads.index(min(loads))
        shares[least].append(shard)
        loads[least] += shard.size
    return sorted(shares[part.index - 1], key=lambda shard: shard.name)


def execute(
    shards: Sequence[Shard],
    staging: Staging,
    *,
    workers: int,
    finite: bool,
    advance: Advance,
    check: Callable[[], None],
) -> None:
    """Write every one of `shards` that `staging` does not hold yet.

    `check` raises when a source is not what it was; it is called before a shard is recorded as finished.

    `advance` is called with bytes as they are done, from worker threads. With `finite`, the tensors that are read are
    searched for NaN and infinity meanwhile, and CheckpointError names the first. Raises OSError when the disk fails;
    finished shards stay for --resume.
    """
    stop = Event()

    def guarded_advance(count: int) -> None:
        if stop.is_set():
            raise _StoppedError
        advance(count)

    jobs: dict[Future[Hashes], Shard | None] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            if finite:
                jobs.update(dict.fromkeys(_submit_checks(shards, pool, stop)))
            for shard in shards:
                if is_done(shard, staging):
                    advance(shard.size)
                else:
                    jobs.update(dict.fromkeys(_submit(shard, staging.path, pool, guarded_advance), shard))
            _collect(jobs, staging, stop, check)
        except BaseException:  # Ctrl-C too: the pool must not go on writing
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def check_space(shards: Sequence[Shard], staging: Staging) -> None:
    """Raise when the disk cannot hold what is left to write of `shards`; blocks shared with the source cost nothing.

    InputError where the whole disk would not be enough, StagingError where it is too full.
    """
    left = [shard for shard in shards if not is_done(shard, staging)]
    needed = sum(shard.size for shard in left)
    sharing = {path for path in source_files(left) if shares_blocks(path, staging.path)}
    needed -= sum(_shared_bytes(shard, sharing) for shard in left)
    # Unfinished shards are written over, so what they take now is free for them.
    held = sum(_disk_bytes(staging.path / shard.name) for shard in left)
    disk = shutil.disk_usage(staging.path)
    beyond = " beyond what is shared with the source" if sharing else ""
    if needed > disk.total:
        raise InputError(
            "no space for such an output",
            where=staging.path.parent,
            found=f"a disk of {disk.total / 1e9:,.2f} GB",
            expected=f"{needed / 1e9:,.2f} GB{beyond}",
            hint="fewer --experts, or an OUT on another disk",
        )
    if needed > disk.free + held:
        raise StagingError(
            f"{staging.path.parent}: not enough space; found {(disk.free + held) / 1e9:.2f} GB free, "
            f"expected {needed / 1e9:.2f} GB{beyond}; choose an OUT on another disk"
        )


def is_done(shard: Shard, staging: Staging) -> bool:
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
    """Make the file of a shard and hand its work to the pool: all copies as one job, every other tensor as another.

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
    return jobs + [
        pool.submit(_compute if write.pieces is None else _assemble, write, path, offset, advance)
        for write, offset in computed
    ]


def _submit_checks(shards: Sequence[Shard], pool: ThreadPoolExecutor, stop: Event) -> list[Future[Hashes]]:
    """Hand the search for NaN and infinity to the pool, a job for every tensor that is read."""
    from upcycle.plan.finite import check_finite, tensors_read

    def check(spec: TensorSpec) -> Hashes:
        if not stop.is_set():
            check_finite(spec)
        return {}

    return [pool.submit(check, spec) for spec in tensors_read(write for shard in shards for write in shard.writes)]


def _collect(
    jobs: Mapping[Future[Hashes], Shard | None], staging: Staging, stop: Event, check: Callable[[], None]
) -> None:
    """Sync and record every shard when its last job is done, while the workers go on with the next ones.

    When a job fails the others stop, and shards that were finished meanwhile are still recorded. Of several failures
    the one that was submitted first is raised, so that the same input gives the same error.
    """
    left = Counter(shard.name for shard in jobs.values() if shard)
    hashes: dict[str, Hashes] = {name: {} for name in left}
    failures: dict[Future[Hashes], Exception] = {}
    for job in as_completed(jobs):
        try:
            found, shard = job.result(), jobs[job]
        except (CancelledError, _StoppedError):
            continue
        except Exception as error:
            failures[job] = error
            _halt(jobs, stop)
            continue
        if shard is None:  # a check
            continue
        name = shard.name
        hashes[name].update(found)
        left[name] -= 1
        if not left[name]:
            with (staging.path / name).open("rb+") as file:
                sync_file(file.fileno())
            check()
            staging.record(name, hashes.pop(name))
    for job in jobs:
        if job in failures:
            raise failures[job]


def _halt(jobs: Iterable[Future[Hashes]], stop: Event) -> None:
    """Let no job begin, and those that run end at their next step."""
    stop.set()
    for job in jobs:
        job.cancel()


def _copy(copies: list[tuple[TensorSpec, int]], path: Path, advance: Advance) -> Hashes:
    """Copy tensors to their offsets in `path`; there is nothing to hash."""
    with path.open("rb+", buffering=0) as target:
        for spec, offset in copies:
            with spec.path.open("rb", buffering=0) as source:
                copy_range(source, spec.offset, target, offset, spec.nbytes, advance)
    return {}


def _assemble(write: Write, path: Path, offset: int, advance: Advance) -> Hashes:
    """Copy the pieces of one tensor one after the other to its offset in `path`; return its SHA-256 if it has one.

    `path` is a new file, in which what was not written is zeros.
    """
    with path.open("rb+", buffering=0) as target:
        place = offset
        for piece in write.pieces or ():
            if isinstance(piece, TensorSpec):
                with piece.path.open("rb", buffering=0) as source:
                    copy_range(source, piece.offset, target, place, piece.nbytes, advance)
                place += piece.nbytes
            else:
                advance(piece)
                place += piece
        return {write.name: _sha256(target, offset, place - offset)} if write.hashed else {}


def _sha256(file: BinaryIO, offset: int, count: int) -> str:
    """Return the SHA-256 of `count` bytes of a file from `offset` on."""
    digest = hashlib.sha256()
    file.seek(offset)
    while count and (data := file.read(min(count, BUFFER))):
        digest.update(data)
        count -= len(data)
    return digest.hexdigest()


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
