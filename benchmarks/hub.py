"""The tests' Hub on loopback in a process of its own, which says when it was asked for what.

python -m benchmarks.hub DIRECTORY serves until its standard input is closed, and tells of the requests since the last
line of that at every line.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hub.hub import Request
from tests.hub.server import serving

UPLOADS = r"POST .*/(objects/batch|objects/verify)|PUT /upload/|/xet-write-token/|POST /v\d/(xorbs|shards)"
"""Requests by which large files come."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a Hub was asked for while a command ran."""

    requests: list[tuple[float, str, int]]  # seconds, method and path, bytes of the body
    cpu_seconds: float  # of the Hub

    @property
    def commits(self) -> list[float]:
        """When they were made."""
        return [at for at, line, _ in self.requests if re.search("POST .*/commit/", line)]

    @property
    def transfer(self) -> float:
        """Seconds from the first request by which a large file comes to the last commit."""
        return self.commits[-1] - next(at for at, line, _ in self.requests if re.search(UPLOADS, line))

    @property
    def uploaded(self) -> int:
        """Bytes of requests by which large files come."""
        return sum(size for _, line, size in self.requests if re.search(UPLOADS, line))


@dataclass(frozen=True, slots=True)
class Serving:
    """A Hub that runs."""

    url: str
    process: "subprocess.Popen[str]"

    def asked(self) -> Asked:
        """Return what was asked since this was called last."""
        assert self.process.stdin is not None  # noqa: S101 - pipes were asked for
        assert self.process.stdout is not None  # noqa: S101
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return Asked(**json.loads(self.process.stdout.readline()))


@contextmanager
def hub(store: Path) -> Iterator[Serving]:
    """Serve an empty Hub while the block lasts."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.hub", str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        yield Serving(process.stdout.readline().strip(), process)
        process.communicate()


class _Stamped(list[Request]):
    """A log that knows when its entries came."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def append(self, entry: Request) -> None:
        self.times.append(time.perf_counter())
        super().append(entry)


def _cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system


def main() -> None:
    """Serve."""
    with serving(Path(sys.argv[1]).resolve()) as running:
        print(running.url, flush=True)
        running.log = log = _Stamped()
        before = _cpu_seconds()
        for _line in sys.stdin:
            entries = [(at, f"{one.method} {one.path}", one.received) for at, one in zip(log.times, log, strict=True)]
            print(json.dumps({"requests": entries, "cpu_seconds": _cpu_seconds() - before}), flush=True)
            running.log = log = _Stamped()
            before = _cpu_seconds()


if __name__ == "__main__":
    main()
