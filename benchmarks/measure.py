"""Wall time and peak memory of commands, and a fair comparison of two of them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

UPCYCLE = str(Path(sys.executable).with_name("upcycle"))
"""The command that belongs to this interpreter."""

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes per unit of ru_maxrss
_READ = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run of a command took."""

    seconds: float  # wall, up to the end of the sync if there was one
    cpu_seconds: float  # user and system, of the command itself
    peak_bytes: int  # largest resident size
    output: str


def run(argv: Sequence[str], *, sync: bool = False) -> Usage:
    """Run a command, with `sync` until all it wrote is on disk; raise CalledProcessError when it fails.

    The peak comes from wait4. Linux counts the parent's size at the moment of exec into it, so the process that calls
    this must be smaller than what it measures: weights are made in a process of their own.
    """
    start = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:  # Ctrl-C too
            process.kill()
            raise
    if sync:
        os.sync()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return Usage(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _RSS_UNIT, output)


def alternate(
    one: Sequence[str], other: Sequence[str], pairs: int, prepare: Callable[[], None]
) -> tuple[list[Usage], list[Usage]]:
    """Run two commands `pairs` times each, with sync, taking turns in going first; `prepare` runs before every one."""
    usages: tuple[list[Usage], list[Usage]] = ([], [])
    for number in range(pairs):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            prepare()
            os.sync()
            usages[which].append(run((one, other)[which], sync=True))
    return usages


def conversion(dense: Path, out: Path) -> list[str]:
    """Return the command that is measured in most places: 8 experts, and all else as it comes."""
    return [UPCYCLE, "convert", str(dense), str(out), "--experts", "8"]


def remove(directory: Path) -> None:
    """Remove an output, finished or not, if there is one."""
    for path in (directory, directory.with_name(directory.name + ".partial")):
        shutil.rmtree(path, ignore_errors=True)


def median_wall(usages: Sequence[Usage]) -> float:
    """Return the median of the seconds."""
    return median(usage.seconds for usage in usages)


def read_through(directory: Path) -> None:
    """Read every file, so that it is in the page cache as far as memory allows."""
    buffer = bytearray(_READ)
    for path in sorted(directory.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
