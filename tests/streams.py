"""Who converts straight to the Hub, what is there afterwards, and conversions that are killed and run again."""

import hashlib
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import run_convert
from tests.hub.access import TOKEN
from tests.hub.hub import Fault, Hub
from tests.hub.repos import Repo
from tests.hub.server import serving
from tests.pushing import WAYS, Author
from tests.warm import Run, User

REPO = "someone/moe"
FIELDS = {"experts": 4, "noise": 0.1, "dtype": "f32", "max_shard_size": "24KB"}
SHARDS = 11
FIRST, SECOND = (f"model-0000{number}-of-000{SHARDS}.safetensors" for number in (1, 2))
GOES_ON = "what is on the Hub stays there, and the same command continues with it"
ON_BRANCH = "POST .*/commit/upcycle-"
ON_MAIN = "POST .*/commit/main"

SLOW = partial(pytest.param, marks=pytest.mark.slow)

Hashes = dict[str, str]


def options(**fields: object) -> list[str]:
    """Fields of a request as words of the command line."""
    return [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@dataclass
class Later(Fault):
    """A fault that lets the first requests pass."""

    skip: int = 0

    def strikes(self, line: str, length: int | None) -> bool:
        if not super().strikes(line, length):
            return False
        self.skip -= 1
        return self.skip < 0


@dataclass(frozen=True)
class Streamer(User):
    """Who converts, from one directory that has all caches in it."""

    def begin(self, model: Path, **fields: object) -> Run:
        return self.start("convert", model, *options(stream_to=REPO, **{**FIELDS, **fields}))

    def stream(self, model: Path, **fields: object) -> "subprocess.CompletedProcess[str]":
        return self.begin(model, **fields).finish()

    @property
    def scratch(self) -> list[str]:
        """What lies in the cache."""
        return [path.name for path in (self.home / "cache").rglob("*") if path.is_file()]

    @property
    def repo(self) -> Repo:
        return self.hub.repos[REPO]


def streamer(hub: Hub, home: Path, way: str = "lfs") -> Streamer:
    """Return one with a token that writes."""
    (home / "tmp").mkdir(parents=True)
    places = {"UPCYCLE_CACHE": str(home / "cache"), "TMPDIR": str(home / "tmp")}
    return Streamer(hub, home, {"HF_TOKEN": TOKEN, **places, **WAYS[way]})


# -- what is there ----------------------------------------------------------------------------------------------------


def pushed(model: Path, **fields: object) -> Hashes:
    """What a push of a local conversion leaves on an empty Hub."""
    return _pushed(model, json.dumps({**FIELDS, **fields}))


@cache
def _pushed(model: Path, fields: str) -> Hashes:
    with TemporaryDirectory() as place, serving(Path(place) / "cas") as hub:
        out = run_convert(model, Path(place) / "out", **json.loads(fields))
        Author(hub, Path(place) / "home").push(out, REPO)
        return hashes(hub.repos[REPO])


def hashes(repo: Repo, revision: str = "main") -> Hashes:
    """Path -> SHA-256 of everything at a revision."""
    commit = repo.find(revision)
    assert commit is not None
    return {path: hashlib.sha256(blob.read(0, blob.size)).hexdigest() for path, blob in commit.files.items()}


def shards_on(repo: Repo, branch: str) -> list[str]:
    commit = repo.find(branch)
    assert commit is not None
    return sorted(path for path in commit.files if re.fullmatch(r"model-.*\.safetensors", path))


def working_branch(repo: Repo) -> str:
    (branch,) = (name for name in repo.refs if name.startswith("upcycle-"))
    return branch


def titles(repo: Repo) -> list[str]:
    head = repo.find("main")
    assert head is not None
    return [commit.title for commit in repo.history(head)]


def check_done(user: Streamer, done: "subprocess.CompletedProcess[str]", expected: Hashes) -> None:
    """It is all there, by one commit, and nothing is left."""
    assert done.returncode == 0, done.stderr
    assert hashes(user.repo) == expected
    assert set(user.repo.refs) == {"main"}
    assert titles(user.repo) == ["Upload model by upcycle", ""]
    assert user.scratch == []


# -- killed and run again ---------------------------------------------------------------------------------------------


def kill_before(user: Streamer, model: Path, pattern: str, skip: int = 0, **fields: object) -> None:
    """Kill a conversion while the Hub refuses a request that a pattern finds, after it has let `skip` pass."""
    refused = Later(pattern, 10**6, status=503, skip=skip)
    user.hub.faults.append(refused)
    cut(user, user.begin(model, **fields), lambda: refused.skip < 0)


def kill_after(user: Streamer, model: Path, pattern: str, skip: int = 0) -> None:
    """Kill a conversion when a request is carried out, and before it knows."""
    held_back = Later(pattern, 1, after=0, hold=True, skip=skip)
    user.hub.faults.append(held_back)
    cut(user, user.begin(model), held_back.reached.is_set)


def cut(user: Streamer, run: Run, reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end, "no such request"
        time.sleep(0.005)
    run.kill(signal.SIGKILL)
    assert run.finish().returncode == -signal.SIGKILL
    user.hub.faults.clear()
    user.hub.writing = threading.RLock()  # a request that is held back still has the other one


def go_on(user: Streamer, model: Path, expected: Hashes) -> None:
    """Run it again, and hold what that does against what is there."""
    repo = user.hub.repos.get(REPO)
    branches = [name for name in repo.refs if name != "main"] if repo else []
    there = len(shards_on(repo, branches[0])) if repo and branches else 0
    complete = repo is not None and len(titles(repo)) > 1
    if repo is not None and not complete:
        assert set(hashes(repo)) == {".gitattributes"}, "nobody has seen any of it"
    user.hub.log.clear()
    done = user.stream(model)
    check_done(user, done, expected)
    if complete and not branches:  # all that is left of it is main itself
        return
    assert len(user.hub.requests(ON_BRANCH)) == SHARDS - there
    assert done.stderr.count(": on the Hub, ") == SHARDS - there
    assert len(user.hub.requests("PUT /upload/")) <= SHARDS - there
    assert len(user.hub.requests(r"POST /v1/xorbs/")) <= SHARDS - there
    assert len(user.hub.requests(ON_MAIN)) == (0 if complete else 1)
