"""Copies bytes between files: in the kernel where it can, through a small buffer where it cannot."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from upcycle.checkpoint.header import BLOCK
from upcycle.errors import CheckpointError

STEP = 64 * 2**20
"""Bytes moved by one call: small enough for progress and Ctrl-C, large enough to cost nothing."""
BUFFER = 4 * 2**20
"""Bytes held in memory by the portable copy."""

_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY}
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP}  # of network and shared-folder file systems
_FICLONERANGE = 0x4020940D  # linux/fs.h: _IOW(0x94, 13, struct file_clone_range)

Move = Callable[[BinaryIO, int, BinaryIO, int, int], int]


def copy_range(
    source: BinaryIO,
    source_offset: int,
    target: BinaryIO,
    target_offset: int,
    count: int,
    advance: Callable[[int], None],
) -> None:
    """Copy `count` bytes between two unbuffered files, calling `advance` with the bytes of every step.

    Uses `copy_file_range`, which shares blocks on file systems with reflinks when both offsets are whole blocks;
    unaligned ends are moved on their own so that the middle is. Falls back to a buffer where the call is absent
    or refused. Raises CheckpointError when the source ends early, OSError when the disk fails.
    """
    move: Move = _move_in_kernel
    done = 0
    while done < count:
        start, end = source_offset + done, target_offset + done
        try:
            moved = move(source, start, target, end, _step(start, end, count - done))
        except OSError as error:
            if move is _move_through_memory or error.errno not in _NO_KERNEL_COPY:
                raise
            moved = 0
        if moved == 0 and move is _move_through_memory:
            raise CheckpointError(
                "ends before its header says", where=source.name, found=f"end of file at byte {start}"
            )
        if moved == 0:  # absent, refused, or the zero that some file systems return instead of an error
            move = _move_through_memory
        done += moved
        advance(moved)


def shares_blocks(source: Path, directory: Path) -> bool:
    """Whether a copy of `source` into `directory` would share its blocks (a reflink), found out by trying one."""
    if sys.platform != "linux":
        return False
    try:
        import fcntl
        import struct
        import tempfile

        with source.open("rb") as origin, tempfile.TemporaryFile(dir=directory) as probe:
            if os.fstat(origin.fileno()).st_size < BLOCK:
                return False
            fcntl.ioctl(probe, _FICLONERANGE, struct.pack("qQQQ", origin.fileno(), 0, BLOCK, 0))
    except (ImportError, OSError):
        return False
    return True


def sync_file(descriptor: int) -> None:
    """Wait until the file is on the disk itself: on macOS fsync alone stops at the drive's cache."""
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError:  # network shares and some other file systems have fsync only
            pass
    os.fsync(descriptor)


def sync_directory(directory: Path) -> None:
    """Make renames and new names in `directory` durable, where platform and file system can (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file and fsync it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        sync_file(file.fileno())


def _step(source_offset: int, target_offset: int, left: int) -> int:
    """Bytes for the next call: to the next block boundary while inside a block that both sides share, then `STEP`."""
    into_block = source_offset % BLOCK
    if into_block and into_block == target_offset % BLOCK:
        return min(left, BLOCK - into_block)
    return min(left, STEP)


def _move_in_kernel(source: BinaryIO, source_offset: int, target: BinaryIO, target_offset: int, count: int) -> int:
    """Return the bytes moved: none where there is no such call (outside Linux)."""
    call: Callable[..., int] | None = getattr(os, "copy_file_range", None)
    return call(source.fileno(), target.fileno(), count, source_offset, target_offset) if call else 0


def _move_through_memory(source: BinaryIO, source_offset: int, target: BinaryIO, target_offset: int, count: int) -> int:
    source.seek(source_offset)
    data = source.read(min(count, BUFFER))
    target.seek(target_offset)
    write_all(target, data)
    return len(data)


def write_all(target: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of `data` to an unbuffered file, which may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]
