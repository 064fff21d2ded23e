"""A conversion straight to the Hub that is cut off anywhere: run again, it goes on with what fits and is there."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.damage import damage, flipped, truncated
from tests.hub.hub import Hub
from tests.hub.repos import Blob
from tests.pushing import WAYS
from tests.streams import (
    FIRST,
    GOES_ON,
    ON_BRANCH,
    ON_MAIN,
    SHARDS,
    SLOW,
    Later,
    Streamer,
    check_done,
    go_on,
    hashes,
    kill_after,
    kill_before,
    pushed,
    shards_on,
    streamer,
    working_branch,
)


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> Streamer:
    """By LFS."""
    return streamer(hub, tmp_path / "user")


# -- cut off ----------------------------------------------------------------------------------------------------------


COMMON = [
    ("POST /api/repos/create", 0), ("POST .*/branch/", 0), ("POST .*/preupload/upcycle-", 4), (ON_BRANCH, 0),
    (ON_BRANCH, 5), (ON_BRANCH, SHARDS - 1), ("POST .*/preupload/main", 0), ("POST .*/paths-info/upcycle-", 0),
    (ON_MAIN, 0), ("DELETE .*/branch/", 0),
]  # fmt: skip
OWN = {
    "lfs": [("POST .*/objects/batch", 3), ("PUT /upload/", 0), ("PUT /upload/", 3), ("POST .*/objects/verify", 3)],
    "xet": [("GET .*/xet-write-token/", 3), ("POST /v1/xorbs/", 0), ("POST /v1/xorbs/", 3), ("POST /v2/shards", 3)],
}
CARRIED_OUT = [
    ("POST /api/repos/create", 0), ("POST .*/branch/", 0), (ON_BRANCH, 2), (ON_MAIN, 0), ("DELETE .*/branch/", 0),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "skip"), [("PUT /upload/", 5), SLOW(ON_MAIN, 0)])
def test_killed_and_run_again(tiny: Path, user: Streamer, pattern: str, skip: int) -> None:
    expected = pushed(tiny)
    kill_before(user, tiny, pattern, skip)
    assert len(shards_on(user.repo, working_branch(user.repo))) == (skip or SHARDS)
    assert len([name for name in user.scratch if name.endswith(".safetensors")]) <= 1
    go_on(user, tiny, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wire", "pattern", "skip"), [(wire, *point) for wire in WAYS for point in [*COMMON, *OWN[wire]]]
)
def test_killed_before_any_request(tmp_path: Path, tiny: Path, hub: Hub, wire: str, pattern: str, skip: int) -> None:
    expected = pushed(tiny)
    user = streamer(hub, tmp_path / "user", wire)
    kill_before(user, tiny, pattern, skip)
    go_on(user, tiny, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "skip"), CARRIED_OUT)
def test_killed_after_any_change(tiny: Path, user: Streamer, pattern: str, skip: int) -> None:
    expected = pushed(tiny)
    kill_after(user, tiny, pattern, skip)
    go_on(user, tiny, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals(tiny: Path, user: Streamer, number: int, code: int, word: str) -> None:
    expected = pushed(tiny)
    held_back = Later("PUT /upload/", 1, after=0, hold=True, skip=2)
    user.hub.faults.append(held_back)
    run = user.begin(tiny)
    assert held_back.reached.wait(60)
    run.kill(number)
    done = run.finish()
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == f"upcycle: {word}; {GOES_ON}"
    assert user.scratch == []
    go_on(user, tiny, expected)


# -- what is on the branch --------------------------------------------------------------------------------------------


def rewritten(user: Streamer, shard: str, **changes: object) -> None:
    """Change a shard's record."""
    commit = user.repo.find(working_branch(user.repo))
    assert commit is not None
    path = f".upcycle/{shard}.json"
    blob = commit.files[path]
    said = {**json.loads(blob.read(0, blob.size)), **changes}
    commit.files[path] = Blob(json.dumps(said).encode())


def broken_shard(user: Streamer) -> None:
    damage(user.hub, user.repo, FIRST, flipped, branch=working_branch(user.repo))


def short_shard(user: Streamer) -> None:
    damage(user.hub, user.repo, FIRST, truncated, branch=working_branch(user.repo))


def broken_record(user: Streamer) -> None:
    damage(user.hub, user.repo, f".upcycle/{FIRST}.json", lambda _: Blob(b"{"), branch=working_branch(user.repo))


def another_shard(user: Streamer) -> None:
    rewritten(user, FIRST, sha256="0" * 64)


def hashes_are_missing(user: Streamer) -> None:
    rewritten(user, FIRST, hashes={})


def hashes_are_nonsense(user: Streamer) -> None:
    rewritten(user, FIRST, hashes=["a", 1])


def no_record(user: Streamer) -> None:
    commit = user.repo.find(working_branch(user.repo))
    assert commit is not None
    del commit.files[f".upcycle/{FIRST}.json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [broken_shard, short_shard, broken_record, another_shard, hashes_are_missing, hashes_are_nonsense, no_record],
)
def test_what_does_not_fit_is_made_again(tiny: Path, user: Streamer, harm: Callable[[Streamer], None]) -> None:
    expected = pushed(tiny)
    kill_before(user, tiny, ON_BRANCH, SHARDS - 1)
    harm(user)
    user.hub.log.clear()
    done = user.stream(tiny)
    check_done(user, done, expected)
    made = re.findall(r"(model-\S+): on the Hub", done.stderr)
    assert made == [FIRST, f"model-000{SHARDS}-of-000{SHARDS}.safetensors"]


@pytest.mark.slow
def test_other_work_does_not_mix(tiny: Path, copy_of: Callable[[Path], Path], user: Streamer) -> None:
    """Another seed, and a fine-tune of the same age, have shards of the same names and sizes."""
    tuned = copy_of(tiny)
    data = bytearray((tuned / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tuned / "model.safetensors").write_bytes(data)
    for path in tuned.iterdir():  # as what unpacks archives does
        os.utime(path, ns=(0, (tiny / path.name).stat().st_mtime_ns))
    wanted = pushed(tiny), pushed(tiny, seed=1), pushed(tuned)
    assert len({json.dumps(one) for one in wanted}) == len(wanted)
    kill_before(user, tiny, ON_BRANCH, SHARDS - 1)
    first = working_branch(user.repo)
    for expected, model, fields in ((wanted[1], tiny, {"seed": 1}), (wanted[2], tuned, {}), (wanted[0], tiny, {})):
        user.hub.log.clear()
        assert user.stream(model, **fields).returncode == 0
        assert hashes(user.repo) == expected
        own = model == tiny and not fields
        assert len(user.hub.requests(ON_BRANCH)) == (1 if own else SHARDS)
        assert set(user.repo.refs) == ({"main"} if own else {"main", first})
