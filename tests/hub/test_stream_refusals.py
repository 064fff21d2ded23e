"""A conversion straight to the Hub that is refused, or cannot go on, and what it leaves then."""

import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub.access import READ_TOKEN, TOKEN
from tests.hub.hub import Hub
from tests.streams import (
    FIELDS,
    FIRST,
    GOES_ON,
    ON_BRANCH,
    REPO,
    SECOND,
    SLOW,
    Later,
    Streamer,
    go_on,
    options,
    pushed,
    shards_on,
    streamer,
    working_branch,
)


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> Streamer:
    """By LFS."""
    return streamer(hub, tmp_path / "user")


@pytest.mark.slow
def test_two_at_once(tiny: Path, user: Streamer) -> None:
    expected = pushed(tiny)
    held_back = Later("PUT /upload/", 1, after=0, hold=True, skip=2)
    user.hub.faults.append(held_back)
    first = user.begin(tiny)
    assert held_back.reached.wait(60)
    second = user.stream(tiny)
    assert second.returncode == 1
    place = user.home / "cache" / "stream"
    assert second.stderr == f"upcycle: error: {place}: another upcycle process is writing the same conversion\n"
    first.kill(signal.SIGKILL)
    first.finish()
    go_on(user, tiny, expected)


def test_a_dry_run_changes_nothing(user: Streamer, tiny: Path) -> None:
    done = user.run("convert", tiny, "--dry-run", *options(stream_to=REPO, **FIELDS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"nothing was written; {REPO} can be\n")
    assert user.hub.repos == {}
    assert {request.method for request in user.hub.log} == {"GET"}
    assert user.scratch == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out", "--stream-to", REPO], "out"),
        SLOW(["--overwrite", "--stream-to", REPO], "overwrite"),
        SLOW(["--part", "1/2", "--stream-to", REPO], "part"),
        (["out", "--private"], "private"),
        SLOW([], "OUT"),
    ],
)
def test_options_that_do_not_go_together(user: Streamer, tiny: Path, words: list[str], said: str) -> None:
    done = user.run("convert", tiny, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert user.hub.log == []


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("hf_wrong_token", "the Hub does not know this token"),
        SLOW(READ_TOKEN, "this token may not write here"),
        SLOW("", "there is no token to write with"),
    ],
)
def test_tokens_that_do_not_do(user: Streamer, tiny: Path, token: str, said: str) -> None:
    done = user.with_(HF_TOKEN=token).stream(tiny)
    assert done.returncode == 2
    assert said in done.stderr
    assert not token or token not in done.stderr
    assert user.hub.repos == {}
    assert user.scratch == []
    assert not user.hub.requests("commit|preupload|upload")


@pytest.mark.slow
def test_a_token_in_a_file_is_not_published(user: Streamer, tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    model = copy_of(tiny)
    (model / "chat_template.jinja").write_text(f"{{# {TOKEN} #}}")
    done = user.stream(model)
    assert done.returncode == 2
    assert "holds your access token" in done.stderr
    assert user.hub.repos == {}


@pytest.mark.slow
def test_a_hub_that_fails_for_long(tiny: Path, user: Streamer) -> None:
    expected = pushed(tiny)
    user.hub.faults.append(Later(ON_BRANCH, 10**6, status=400, skip=3))
    done = user.stream(tiny)
    assert done.returncode == 2
    assert "the Hub refuses this (status 400)" in done.stderr
    assert user.scratch == []
    user.hub.faults.clear()
    go_on(user, tiny, expected)


@pytest.fixture
def small_disk(user: Streamer) -> Iterator[Path]:
    """A disk of 32 kB for the cache."""
    place = user.home / "cache"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_too_small_for_one_shard(tiny: Path, user: Streamer, small_disk: Path) -> None:
    expected, disk = pushed(tiny), small_disk
    done = user.stream(tiny)
    assert done.returncode == 1
    matched = re.fullmatch(
        rf"upcycle: error: {disk}/stream: not enough space for {SECOND}; found ([\d,]+) bytes free, expected ([\d,]+); "
        rf"UPCYCLE_CACHE names a directory on another disk; {GOES_ON}", done.stderr.splitlines()[-1],
    )  # fmt: skip
    assert matched
    free, needed = (int(number.replace(",", "")) for number in matched.groups())
    assert free < needed < 32_768
    assert shards_on(user.repo, working_branch(user.repo)) == [FIRST]
    assert user.scratch == []
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    go_on(user, tiny, expected)
