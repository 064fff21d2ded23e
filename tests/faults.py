"""Faults at every point of a work: a disk whose calls fail, a kill before a change, disks that are really full.

The output of a conversion and the checkpoints of a training are both held against this one harness. The fast tests
take the first, the last and every seventh point, the slow ones all of them.
"""

import ctypes
import errno
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

every = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["seventh", "all"])
"""A test that takes each `every`-th point."""


def _next(at: int, every: int, last: int) -> int:
    """Return the point to try after `at`: `every` further on, but not past the last one, and then one by one."""
    return min(at + every, max(at + 1, last))


# -- processes that have imported everything ---------------------------------------------------------------------------

FORKS: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
_PRELOADED = ["upcycle.plan.compute", "upcycle.pipeline.stages"]


def preload(module: str) -> None:
    """Let processes of FORKS begin with a test module imported; it is called when that module is."""
    _PRELOADED.append(module)
    FORKS.set_forkserver_preload(list(_PRELOADED))


# -- a disk that fails -------------------------------------------------------------------------------------------------

REAL_OPEN = io.open

CODES = {
    "open": (errno.ENOSPC, errno.EIO, errno.EROFS),
    "write": (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT),
    "copy_file_range": (errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EDQUOT),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "truncate": (errno.EFBIG, errno.EIO),
    "rename": (errno.EIO, errno.ENOSPC, errno.EROFS),
    "mkdir": (errno.ENOSPC, errno.EROFS, errno.EDQUOT),
    "remove": (errno.EIO, errno.EROFS),
    "space": (errno.ENOSPC, errno.EDQUOT),
    "any": (errno.EROFS, errno.EIO),
}
"""Kind of call -> the errors that it is given, in turn."""

KINDS = {
    **{kind: {kind} for kind in CODES},
    "space": {"write", "copy_file_range", "mkdir"},  # the disk is full, but removes and renames
    "any": set(CODES),  # the disk is gone, or was made read-only by its driver
}


@dataclass
class Disk:
    """What lies below `place`, on a disk that fails at the call number `at` of a kind; for good, if `lasting`."""

    place: Path
    kind: str
    at: int
    lasting: bool = False
    greedy: bool = True  # whether a write takes all that it is given
    count: int = 0
    fired: bool = False
    guard: Lock = field(default_factory=Lock)

    @property
    def code(self) -> int:
        return CODES[self.kind][self.at % len(CODES[self.kind])]

    def meet(self, kind: str, *paths: Any) -> None:
        """Count a call, and fail if it is its turn; the error names files where the kernel's would."""
        if kind not in KINDS[self.kind] or (paths and not any(self.holds(path) for path in paths)):
            return
        with self.guard:
            self.count += 1
            fails = self.count == self.at or (self.lasting and self.count > self.at)
            self.fired |= fails
        if fails:
            raise OSError(self.code, os.strerror(self.code), *map(os.fspath, paths[:1]))

    def holds(self, path: Any) -> bool:
        return not isinstance(path, int) and Path(path).is_relative_to(self.place)

    def open(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **words: Any) -> Any:
        """As io.open; the bytes of a file for writing go through this disk."""
        if not self.holds(file) or not set(mode) & set("wax+"):
            return REAL_OPEN(file, mode, buffering, *rest, **words)
        self.meet("open", file)
        raw = Raw(file, mode)
        raw.disk = self
        if buffering == 0:
            return raw
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let this process meet this disk."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(io, "open", self.open)
            patch.setattr(os, "fsync", lambda _descriptor: self.meet("fsync"))
            patch.setattr(os, "copy_file_range", self._failing("copy_file_range", os.copy_file_range, 0))
            for name, kind, paths in (
                ("open", "open", 1), ("rename", "rename", 2), ("replace", "rename", 2), ("mkdir", "mkdir", 1),
                ("unlink", "remove", 1), ("rmdir", "remove", 1),
            ):  # fmt: skip
                patch.setattr(os, name, self._failing(kind, getattr(os, name), paths))
            yield

    def _failing(self, kind: str, real: Callable[..., Any], paths: int) -> Callable[..., Any]:
        def call(*args: Any, **words: Any) -> Any:
            self.meet(kind, *args[:paths])
            return real(*args, **words)

        return call


class Raw(io.FileIO):
    """A file on a failing disk. Where it becomes full, the last write takes half of what it is given."""

    disk: Disk

    def write(self, data: Any) -> int:
        self.disk.meet("write")
        view = memoryview(data).cast("B")
        full = self.disk.kind == "write" and self.disk.count + 1 == self.disk.at
        return super().write(view if self.disk.greedy and not full else view[: max(1, len(view) // 2)])

    def truncate(self, size: int | None = None) -> int:
        self.disk.meet("truncate")
        return super().truncate(size)


Check = Callable[[Exception | None, Disk], None]


def fail_everywhere(
    prepare: Callable[[], Path], work: Callable[[], None], check: Check, kind: str, *, every: int, lasting: bool
) -> int:
    """Let calls of a kind fail in turn, each in a work that is `prepare`d anew; return how many stopped the work.

    `prepare` returns the directory that lies on the failing disk. `check` gets what stopped the work, or None. The
    last point is tried however many a fault adds: a write that comes short is followed by another.
    """

    def meet(at: int) -> tuple[Disk, bool]:
        disk = Disk(prepare(), kind, at, lasting and at > 0)
        stopped: Exception | None = None
        with disk.installed():
            try:
                work()
            except Exception as error:
                stopped = error
        assert disk.fired or stopped is None, f"call {at} of {kind}"
        check(stopped, disk)
        return disk, stopped is not None

    last = meet(0)[0].count if every > 1 else 1
    at, count = 1, 0
    while True:
        disk, stopped = meet(at)
        if not disk.fired:
            return count
        count += stopped
        at = _next(at, every, last)


# -- a kill before every change ----------------------------------------------------------------------------------------

CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "ctypes.dlopen"}
"""Audit events before which a work is stopped, where they concern its directory; the last one comes
before the exchange of two directories. `fsync` and `copy_file_range`, which have no events, are counted as well."""


def spared_disk(_descriptor: int) -> None:
    """In place of fsync where hundreds of works are killed: SIGKILL loses nothing that was written."""


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that syncs nothing."""
    monkeypatch.setattr(os, "fsync", spared_disk)


class NoExchange:
    """A C library without renameat2."""

    def __init__(self, _name: None) -> None:
        pass


def count_steps(step: int, act: Callable[[int], None], place: str) -> Callable[[], int]:
    """Call `act` before the change to the disk number `step`; return a function that tells how many there were.

    There is no way back: for processes that end.
    """
    count = 0

    def advance() -> None:
        nonlocal count
        count += 1
        if count == step:
            act(count)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        concerned = event == "ctypes.dlopen" or any(isinstance(arg, str | Path) and place in str(arg) for arg in args)
        if event in CHANGES and concerned:
            advance()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            advance()
            return function(*args)

        return call

    def in_pieces(source: int, target: int, size: int, source_offset: int, target_offset: int) -> int:
        return int(pieces(source, target, min(size, 5000), source_offset, target_offset))

    pieces = counted(os.copy_file_range)
    os.copy_file_range = in_pieces  # type: ignore[assignment]
    os.fsync = counted(spared_disk)
    sys.addaudithook(audit)
    return lambda: count


def kill(_step: int = 0) -> None:
    """End this process as nothing can hold up."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(step: int, work: Callable[[Path], object], place: Path, *, exchange: bool = True) -> int | None:
    """Let a process do `work` below `place` and be killed before its change number `step`.

    Return None if it was; else how many changes it made.
    """
    here, there = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_do, args=(step, work, place, exchange, there))
    process.start()
    there.close()
    process.join()
    with here:
        if process.exitcode == 0:
            return int(here.recv())
    assert process.exitcode == -signal.SIGKILL, process.exitcode
    return None


def _do(step: int, work: Callable[[Path], object], place: Path, exchange: bool, told: Any) -> None:
    if not exchange:
        ctypes.CDLL = NoExchange  # type: ignore[assignment,misc]
    counted = count_steps(step, kill, str(place))
    work(place)
    told.send(counted())


def kill_everywhere(
    prepare: Callable[[], Path], work: Callable[[Path], object], check: Callable[[Path], None], *, every: int,
    exchange: bool = True,
) -> int:  # fmt: skip
    """Kill the work before its changes to the disk, each time `prepare`d anew; return how many changes there are.

    What `prepare` returns goes to `work`, which another process does, and to `check` when it is dead or has ended.
    """

    def meet(step: int) -> int | None:
        place = prepare()
        changes = killed_at(step, work, place, exchange=exchange)
        check(place)
        return changes

    last = meet(0) if every > 1 else 1
    assert last is not None
    step = 1
    while (changes := meet(step)) is None:
        step = _next(step, every, last)
    return changes


# -- disks that are really full or read-only, in a mount namespace that goes with its process -------------------------

UNSHARE = ["unshare", "--mount", "--propagation", "private"]


def mount(place: Path, options: str) -> None:
    """Have a disk of its own at `place`, or change the one that is there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def own_mounts() -> None:
    """What is mounted from now on goes with this process."""
    assert ctypes.CDLL(None).unshare(0x20000) == 0  # linux/sched.h: CLONE_NEWNS
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def can_mount() -> bool:
    """Whether this user may mount, which takes root."""
    trial = [*UNSHARE, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(trial, capture_output=True).returncode == 0


def limit_files(size: int) -> None:
    """Let no file of this process become larger."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
