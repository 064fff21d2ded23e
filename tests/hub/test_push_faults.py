"""Pushes that the Hub cuts off or spoils, and others that are stopped: what is told, and what a rerun does."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_convert
from tests.hub.damage import damage, flipped, lost, truncated
from tests.hub.server import Hub
from tests.pushing import LFS, UPLOADS, WAYS, Author, content, held, same
from tests.warm import Run

NAME = "someone/moe"

PUT, BLOCKS, SHARDS = "PUT /upload/", "POST /v1/xorbs/", "POST /v2/shards"
COMMIT = "POST .*/commit/"

SLOW = pytest.mark.slow  # not by itself; there are many


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with four experts, in three files."""
    place = tmp_path_factory.mktemp("pushed")
    return run_convert(Path("demo:tiny"), place / "moe", max_shard_size="2MB", noise=0.1)


@pytest.fixture
def author(hub: Hub, tmp_path: Path) -> Author:
    """Who may write, by chunks, and hardly waits before another attempt."""
    return Author(hub, tmp_path / "home").impatient()


@pytest.fixture(params=WAYS)
def either(request: pytest.FixtureRequest, author: Author) -> Author:
    """The same, in both ways that large files travel."""
    return author.with_(**WAYS[request.param])


# -- what passes ------------------------------------------------------------------------------------------------------

THREE: list[dict[str, Any]] = [{"status": 500}, {"status": 429, "headers": {"Retry-After": "0"}}, {}]
"""An answer in the middle of what is sent, another one, and a reset."""


@pytest.mark.parametrize(
    ("way", "pattern", "bytes_in"),
    [
        ("lfs", PUT, 100_000),
        ("xet", BLOCKS, 100_000),
        ("xet", SHARDS, 1_000),
        ("lfs", COMMIT, 10_000),
        pytest.param("lfs", "POST .*/preupload/", 500, marks=SLOW),
        pytest.param("lfs", "POST .*/objects/batch", 50, marks=SLOW),
        pytest.param("lfs", "POST .*/verify", 20, marks=SLOW),
        pytest.param("lfs", "POST /api/repos/create", 10, marks=SLOW),
    ],
)
def test_what_passes_is_survived(hub: Hub, author: Author, model: Path, way: str, pattern: str, bytes_in: int) -> None:
    planted = [hub.plant(pattern, upload_after=bytes_in, **fault) for fault in THREE]
    done = author.with_(**WAYS[way], HF_XET_CLIENT_RETRY_MAX_ATTEMPTS="5").upcycle("push", model, NAME)
    assert all(fault.reached.is_set() for fault in planted)
    assert same(hub.repos[NAME], model)
    assert len(hub.repos[NAME].commits) == 2  # the Hub's own, and one
    assert "error" not in done.stderr


READS = ("GET /api/whoami-v2", f"GET /api/models/{NAME}$", f"GET /api/models/{NAME}/revision", "GET .*xet-write-token")


@SLOW
@pytest.mark.parametrize("pattern", READS)
def test_a_hub_that_fails_at_questions(hub: Hub, author: Author, model: Path, pattern: str) -> None:
    planted = [hub.plant(pattern, status=status, headers={"Retry-After": "0"}) for status in (500, 429, 503)]
    author.upcycle("push", model, NAME)
    assert all(fault.times == 0 for fault in planted)
    assert same(hub.repos[NAME], model)


@pytest.mark.parametrize("more", [[], ["--create-pr"]], ids=["main", "pull request"])
def test_an_answer_to_a_commit_that_is_lost(hub: Hub, author: Author, model: Path, more: list[str]) -> None:
    """The commit is there, and nobody knows: it is not made twice."""
    fault = hub.plant(COMMIT, after=0)
    author.upcycle("push", model, NAME, *more)
    assert fault.reached.is_set()
    repo = hub.repos[NAME]
    assert same(repo, model, "refs/pr/1" if more else "main")
    assert (len(repo.commits), len(repo.pulls)) == (2, len(more))


# -- what lasts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "pattern", "fault", "words"),
    [
        ("lfs", PUT, {"status": 500, "upload_after": 100_000}, "the Hub fails (status 500)"),
        pytest.param("lfs", PUT, {"status": 429, "upload_after": 100_000}, "the Hub fails (status 429)", marks=SLOW),
        pytest.param("lfs", PUT, {"upload_after": 100_000}, "or breaks off (", marks=SLOW),
        pytest.param("xet", BLOCKS, {"status": 500, "upload_after": 100_000}, "or breaks off (", marks=SLOW),
        pytest.param("xet", BLOCKS, {"status": 429, "upload_after": 100_000}, "or breaks off (", marks=SLOW),
        ("xet", BLOCKS, {"upload_after": 100_000}, "or breaks off ("),
        pytest.param("xet", SHARDS, {"status": 500}, "or breaks off (", marks=SLOW),
        ("lfs", COMMIT, {"status": 500}, "the Hub fails (status 500)"),
        pytest.param("lfs", COMMIT, {"status": 429}, "the Hub fails (status 429)", marks=SLOW),
        pytest.param("lfs", COMMIT, {"upload_after": 1_000}, "or breaks off (", marks=SLOW),
        pytest.param("lfs", "GET /api/whoami", {"status": 500}, "the Hub fails (status 500)", marks=SLOW),
        pytest.param("lfs", "GET .*/revision/", {"status": 500}, "@main: the Hub fails (status 500)", marks=SLOW),
    ],
)  # fmt: skip
def test_what_lasts_ends_it_and_a_rerun_completes(
    hub: Hub, author: Author, model: Path, way: str, pattern: str, fault: dict[str, Any], words: str
) -> None:
    either = author.with_(**WAYS[way])
    repo = hub.repo(NAME, {".gitattributes": b"", "config.json": b"{}"})
    before = repo.refs["main"]
    planted = hub.plant(pattern, times=100, **fault)
    line = either.refused(model, NAME, code=1)
    assert line.startswith(NAME)
    assert words in line
    assert planted.times < 96
    assert repo.refs["main"] == before
    planted.times = 0
    either.upcycle("push", model, NAME)
    assert same(repo, model)
    assert len(repo.commits) == 2


@pytest.mark.parametrize("status", [500, pytest.param(None, marks=SLOW)])
def test_a_rerun_sends_what_was_missing(hub: Hub, author: Author, model: Path, status: int | None) -> None:
    """By LFS; one of three files never arrives at first."""
    by_lfs, (one, *others) = author.with_(**LFS), shards(model)
    fault = {"upload_after": 100_000} if status is None else {"upload_after": 100_000, "status": status}
    planted = hub.plant(f"{PUT}{sha256(one)}", times=100, **fault)
    by_lfs.refused(model, NAME, code=1)
    assert not held(hub.repos[NAME])
    assert {sha256(path) for path in others} == hub.uploads.keys()
    planted.times = 0
    before = hub.received(PUT)
    by_lfs.push(model, NAME)
    assert hub.received(PUT) - before == one.stat().st_size
    assert same(hub.repos[NAME], model)


def test_a_rerun_after_everything_arrived(hub: Hub, either: Author, model: Path) -> None:
    """The commit alone failed."""
    planted = hub.plant(COMMIT, times=100, status=500)
    either.refused(model, NAME, code=1)
    planted.times = 0
    before = hub.received(UPLOADS)
    either.push(model, NAME)
    assert hub.received(UPLOADS) == before
    assert same(hub.repos[NAME], model)


def shards(model: Path) -> list[Path]:
    return sorted(model.glob("model-*.safetensors"))


def sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- what the Hub spoils ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (flipped, "hash"),
        pytest.param(truncated, "bytes, not", marks=SLOW),
        pytest.param(lost, "is not there", marks=SLOW),
    ],
)
@pytest.mark.parametrize("path", ["model-00002-of-00003.safetensors", pytest.param("tokenizer.json", marks=SLOW)])
def test_the_final_check_notices(hub: Hub, either: Author, model: Path, how: Any, says: str, path: str) -> None:
    hub.corrupt(path, how)
    line = either.refused(model, NAME, code=1)
    assert line.startswith(f"{NAME}: what the Hub holds is not what was sent: {path} ")
    assert says in line
    assert line.endswith("; push it again")
    told = either.push(model, NAME)
    assert told["uploaded"] == [path]
    assert same(hub.repos[NAME], model)


@SLOW
def test_what_is_spoilt_later_is_noticed_by_another_push(hub: Hub, either: Author, model: Path) -> None:
    either.push(model, NAME)
    for how in (flipped, truncated, lost):
        damage(hub, hub.repos[NAME], "model-00001-of-00003.safetensors", how)
        assert either.push(model, NAME)["uploaded"] == ["model-00001-of-00003.safetensors"]
        assert same(hub.repos[NAME], model)


# -- stopped in the middle --------------------------------------------------------------------------------------------


def in_the_middle(hub: Hub, author: Author, model: Path, *words: str) -> Run:
    """A push that has sent a part of a large file and waits to go on."""
    fault = hub.plant(UPLOADS, upload_after=100_000, hold=True)
    running = author.start("push", model, NAME, *words)
    assert fault.reached.wait(60)
    return running


@pytest.mark.parametrize(
    ("way", "number", "code"),
    [
        ("xet", signal.SIGINT, 130), ("xet", signal.SIGTERM, 143), ("xet", signal.SIGKILL, -9),
        ("lfs", signal.SIGINT, 130), ("lfs", signal.SIGTERM, 143), ("lfs", signal.SIGKILL, -9),
    ],
)  # fmt: skip
def test_stopped_in_the_middle_and_run_again(
    hub: Hub, author: Author, model: Path, way: str, number: int, code: int
) -> None:
    either = author.with_(**WAYS[way])
    running = in_the_middle(hub, either, model)
    running.kill(number)
    done = running.finish()
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert number == signal.SIGKILL or "the same command goes on" in done.stderr
    assert not held(hub.repos[NAME])
    either.push(model, NAME)
    assert same(hub.repos[NAME], model)


def test_a_file_that_changes_while_it_is_uploaded(hub: Hub, either: Author, model: Path, copy_of: Any) -> None:
    changing = copy_of(model)
    path = shards(changing)[0]
    running = in_the_middle(hub, either, changing)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    hub.closing.set()
    done = running.finish()
    hub.closing.clear()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"upcycle: error: {path}: changed since it was checked; push it when nothing writes to it"
    )
    assert not held(hub.repos[NAME])


def test_somebody_else_commits_meanwhile(hub: Hub, either: Author, model: Path) -> None:
    repo = hub.repo(NAME, {".gitattributes": b"", "config.json": b"{}", "model.safetensors": b"old"})
    running = in_the_middle(hub, either, model)
    theirs = repo.commit({"notes.txt": b"1", "README.md": b"# Theirs\n"})
    hub.closing.set()
    done = running.finish()
    hub.closing.clear()
    assert done.returncode == 0, done.stderr
    assert "412" in done.stderr
    assert repo.commits[repo.refs["main"]].parent == theirs.id
    assert content(repo, "notes.txt") == b"1"
    assert content(repo, "README.md").startswith(b"---\n")
    assert b"# Theirs\n" in content(repo, "README.md")
    assert held(repo).keys() == {path.name for path in model.iterdir()} | {"notes.txt", "README.md"}
