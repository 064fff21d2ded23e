"""What the tests themselves stand on: Ctrl-C is heard, every pair of values meets, shared directories are made once."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Once
from tests.faults import Disk, fail_everywhere
from tests.pairwise import pairwise

HEARD = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('deaf')"
CHILD = (
    "import subprocess, sys, tests.conftest; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such disposition")
def test_a_session_that_was_started_with_ctrl_c_ignored_hears_it() -> None:
    """As by `make test &` and nohup. A child that is deaf prints so and exits with 0."""

    def deafen() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", *words]
        return subprocess.run(command, preexec_fn=deafen, capture_output=True, text=True, check=False)

    assert run(HEARD).stdout == "deaf\n"
    done = run(CHILD, HEARD)
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert "KeyboardInterrupt" in done.stderr


def test_every_pair_meets() -> None:
    rows = pairwise("abcd", (1, 2, 3), (True, False))
    assert len(rows) == 12 < 4 * 3 * 2  # no fewer than the two longest axes have pairs
    assert {row[:2] for row in rows} == {(one, two) for one in "abcd" for two in (1, 2, 3)}
    assert {row[1:] for row in rows} == {(two, three) for two in (1, 2, 3) for three in (True, False)}
    assert {row[::2] for row in rows} == {(one, three) for one in "abcd" for three in (True, False)}


@pytest.mark.parametrize(("every", "tried"), [(1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]), (7, [0, 1, 8, 10, 11])])
def test_the_points_at_which_a_disk_fails(tmp_path: Path, every: int, tried: list[int]) -> None:
    """Ten calls: the first, the last and every seventh of them, and one more than there are, which none is."""
    met: list[tuple[int, bool]] = []

    def work() -> None:
        for number in range(10):
            (tmp_path / f"{len(met)}-{number}").mkdir()

    def check(error: Exception | None, disk: Disk) -> None:
        met.append((disk.at, error is not None))

    stopped = fail_everywhere(lambda: tmp_path, work, check, "mkdir", every=every, lasting=False)
    assert met == [(at, 0 < at <= 10) for at in tried]
    assert stopped == len([at for at in tried if 0 < at <= 10])


def test_a_shared_directory_is_made_once(once: Once) -> None:
    made: list[Path] = []

    def make(place: Path) -> None:
        made.append(place)
        (place / "file").touch()

    name = f"tried-{os.getpid()}"
    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(lambda _: once(name, make), range(8)))
    assert set(places) == set(made)
    assert len(made) == 1
    assert [path.name for path in places[0].iterdir()] == ["file"]
