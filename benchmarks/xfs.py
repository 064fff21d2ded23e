"""An XFS file system with reflinks in an image file, and how many bytes of a file are shared with another one."""

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upcycle.checkpoint.reader import open_checkpoint

_FIEMAP = 0xC020660B  # linux/fs.h: FS_IOC_FIEMAP
_HEADER = struct.Struct("=QQIIII")  # linux/fiemap.h: start, length, flags, mapped extents, room for extents, reserved
_EXTENT = struct.Struct("=QQQQQIIII")  # logical, physical, length, 2 reserved, flags, 3 reserved
_ROOM = 512  # extents asked for in one call
_SYNC, _LAST, _SHARED = 0x1, 0x1, 0x2000  # FIEMAP_FLAG_SYNC, FIEMAP_EXTENT_LAST, FIEMAP_EXTENT_SHARED


def obstacle() -> str | None:
    """Return why no XFS image can be mounted here, or None when it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "mounting needs root"
    if shutil.which("mkfs.xfs") is None:
        return "mkfs.xfs is missing (package xfsprogs)"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    return None


@contextmanager
def mounted(parent: Path, size: int) -> Iterator[Path]:
    """Mount a new XFS of `size` bytes, in a sparse image under `parent`; unmount and remove it whatever happens."""
    scratch = Path(tempfile.mkdtemp(prefix="xfs-", dir=parent))
    image, mount = scratch / "image", scratch / "mount"
    try:
        mount.mkdir()
        with image.open("wb") as file:
            file.truncate(size)
        _call("mkfs.xfs", "-q", "-m", "reflink=1", str(image))
        _call("mount", "-o", "loop", str(image), str(mount))
        yield mount
    finally:
        _unmount(mount)
        shutil.rmtree(scratch)


def _unmount(mount: Path) -> None:
    """Unmount; the loop device detaches with it. A directory that is still in use gets a few seconds."""
    for _ in range(10):
        if not mount.is_mount():
            return
        if subprocess.run(["umount", str(mount)], check=False).returncode == 0:
            return
        time.sleep(0.5)
    _call("umount", "--lazy", str(mount))


def _call(*argv: str) -> None:
    # A session of its own, so that Ctrl-C reaches the caller and not a half-done mount.
    subprocess.run(argv, check=True, start_new_session=True, stdout=subprocess.DEVNULL)


def disk_used(directory: Path) -> int:
    """Return the bytes in use on the file system of `directory`, once all that is written is on disk."""
    os.sync()
    status = os.statvfs(directory)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def shared_expert_bytes(checkpoint: Path) -> tuple[int, int]:
    """Return how many bytes of the experts of a checkpoint lie in shared blocks, and how many there are."""
    shared = total = 0
    for header in open_checkpoint(checkpoint).headers.values():
        extents = list(shared_extents(header.path))
        experts = [spec for spec in header.tensors.values() if ".experts." in spec.name]
        total += sum(spec.nbytes for spec in experts)
        shared += sum(_overlap(spec.offset, spec.offset + spec.nbytes, extents) for spec in experts)
    return shared, total


def shared_extents(path: Path) -> Iterator[tuple[int, int]]:
    """Yield `(start, end)` of the byte ranges of a file whose blocks another file uses too, by FIEMAP."""
    with path.open("rb") as file:
        start, last = 0, False
        while not last:
            answer = bytearray(_HEADER.size + _ROOM * _EXTENT.size)
            _HEADER.pack_into(answer, 0, start, 2**64 - 1 - start, _SYNC, 0, _ROOM, 0)
            fcntl.ioctl(file, _FIEMAP, answer)
            mapped = _HEADER.unpack_from(answer)[3]
            last = mapped == 0
            for number in range(mapped):
                logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(answer, _HEADER.size + number * _EXTENT.size)
                start, last = logical + length, bool(flags & _LAST)
                if flags & _SHARED:
                    yield logical, start


def _overlap(start: int, end: int, extents: list[tuple[int, int]]) -> int:
    return sum(max(0, min(end, last) - max(start, first)) for first, last in extents)
