"""Locks a file against other processes, until it is closed or this process ends.

They are advisory, and work between machines where the file system passes them on (NFS 4, Lustre with `flock`, SMB).
Where the file system has none, work goes on without.
"""

import errno
import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

from upcycle.errors import StagingError

PATIENCE = 60.0
"""Seconds to wait for what others hold only for a moment."""

_STEP = 0.05
_BUSY = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_FAR = 2**30  # the byte that Windows locks, which nobody reads


class Lock:
    """A lock that is held; made by `take`."""

    def __init__(self, file: BinaryIO) -> None:
        """Hold the lock of an open file."""
        self._file = file

    def release(self) -> None:
        """Let go; harmless the second time."""
        self._file.close()


def take(path: Path, *, create: bool = True, patience: float = 0.0, what: str = "here") -> Lock:
    """Lock the file `path`, waiting up to `patience` seconds; `what` says what is locked.

    Raises StagingError when another process has it, FileNotFoundError when it is not there (any more) and may not be
    made: while this process waited, the one that had it may have removed it.
    """
    end = time.monotonic() + patience
    while True:
        file = path.open("ab" if create else "r+b")
        try:
            locked = _try_lock(file)
            there = _is_file_at(file, path)
            if locked and there:
                return Lock(file)
            if there and time.monotonic() >= end:
                raise StagingError(f"{path.parent}: another upcycle process is writing {what}")
        except BaseException:
            file.close()
            raise
        file.close()
        if there:  # else it was removed or replaced meanwhile: look again at once
            time.sleep(_STEP)


def _is_file_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(file: BinaryIO) -> bool:
    """Lock without waiting; return whether this process has it, or nobody can have it here."""
    try:
        _lock(file)
    except ImportError:  # a Python without fcntl
        return True
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _lock(file: BinaryIO) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(_FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
