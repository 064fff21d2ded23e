"""A conversion straight to the Hub: what it leaves there, wherever it is cut off, and what it leaves here."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import run_convert
from tests.hub.access import READ_TOKEN, TOKEN
from tests.hub.damage import damage, flipped, truncated
from tests.hub.hub import Fault, Hub
from tests.hub.repos import Blob, Repo
from tests.hub.server import serving
from tests.warm import Run, Warm, warm

REPO = "someone/moe"
PLAIN: dict[str, object] = {"noise": 0.0, "dtype": "keep", "max_shard_size": "5GB"}
FIELDS = {"experts": 4, "noise": 0.1, "dtype": "f32", "max_shard_size": "24KB"}
SHARDS = 11
WIRES = {"lfs": {"HF_HUB_DISABLE_XET": "1"}, "xet": {}}
GOES_ON = "what is on the Hub stays there, and the same command goes on with it"
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


@dataclass
class User:
    """Who converts, from one directory that has the caches in it."""

    warm: Warm
    hub: Hub
    place: Path
    environment: dict[str, str]

    def start(self, *words: str) -> Run:
        return self.warm.start(self.place, *words, **self.environment)

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return finish(self.start(*words))

    def stream(self, model: Path, **fields: object) -> "subprocess.CompletedProcess[str]":
        return self.run("convert", str(model), *options(stream_to=REPO, **{**FIELDS, **fields}))

    def begin(self, model: Path, **fields: object) -> Run:
        return self.start("convert", str(model), *options(stream_to=REPO, **{**FIELDS, **fields}))

    def with_(self, **environment: str) -> "User":
        return replace(self, environment=self.environment | environment)

    @property
    def scratch(self) -> list[str]:
        """What lies in the cache."""
        return [path.name for path in (self.place / "cache").rglob("*") if path.is_file()]

    @property
    def repo(self) -> Repo:
        return self.hub.repos[REPO]


def finish(run: Run) -> "subprocess.CompletedProcess[str]":
    done = run.wait()
    assert TOKEN not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Warm]]:
    home = tmp_path_factory.mktemp("hub")
    with serving(home) as hub, warm(hub, home / "home") as runs:
        yield hub, runs


def emptied(hub: Hub, store: Path) -> Hub:
    """The Hub as it is on its first day."""
    for known in (hub.repos, hub.uploads, hub.log, hub.faults, hub.corruptions):
        known.clear()
    hub.store = store
    return hub


def user_at(place: Path, served: tuple[Hub, Warm], wire: str) -> User:
    hub, runs = served
    own = {name: str(place / name) for name in ("home", "cache", "tmp")}
    (place / "tmp").mkdir(parents=True)
    environment = {
        "HF_TOKEN": TOKEN, "HF_HOME": own["home"], "HF_XET_CACHE": f"{own['home']}/xet", "UPCYCLE_CACHE": own["cache"],
        "TMPDIR": own["tmp"], **WIRES[wire],
    }  # fmt: skip
    return User(runs, emptied(hub, place / "store"), place, environment)


@pytest.fixture
def user(tmp_path: Path, served: tuple[Hub, Warm]) -> User:
    """By LFS."""
    return user_at(tmp_path / "user", served, "lfs")


@pytest.fixture(params=WIRES)
def either(tmp_path: Path, served: tuple[Hub, Warm], request: pytest.FixtureRequest) -> User:
    """By LFS and by Xet."""
    return user_at(tmp_path / "user", served, request.param)


Expected = Callable[..., Hashes]


@pytest.fixture(scope="module")
def pushed(served: tuple[Hub, Warm], tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Return a function: a model and options -> what a push of a local conversion leaves on an empty Hub.

    It is to be called before the Hub of a test is used, for it uses the same one and empties it.
    """
    made: dict[tuple[Path, str], Hashes] = {}

    def get(model: Path, **fields: object) -> Hashes:
        asked = {**FIELDS, **fields}
        key = (model, json.dumps(asked))
        if key not in made:
            place = tmp_path_factory.mktemp("pushed")
            store = served[0].store
            user = user_at(place / "user", served, "lfs")
            out = run_convert(model, place / "out", **asked)
            assert user.run("push", str(out), REPO).returncode == 0
            made[key] = held(user.repo)
            emptied(user.hub, store)
        return made[key]

    return get


def held(repo: Repo, revision: str = "main") -> Hashes:
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


def check_done(user: User, done: "subprocess.CompletedProcess[str]", expected: Hashes) -> None:
    """It is all there, by one commit, and nothing is left."""
    assert done.returncode == 0, done.stderr
    assert held(user.repo) == expected
    assert set(user.repo.refs) == {"main"}
    assert titles(user.repo) == ["Upload model by upcycle", ""]
    assert user.scratch == []


# -- what comes of it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "fields"),
    [
        ("xet", {}), SLOW("lfs", {}), SLOW("xet", PLAIN), SLOW("lfs", PLAIN),
        SLOW("lfs", {"router": "zeros", "experts": 3}),
    ],
)  # fmt: skip
def test_the_same_as_a_push(
    tmp_path: Path, tiny: Path, pushed: Expected, served: tuple[Hub, Warm], wire: str, fields: dict[str, object]
) -> None:
    expected = pushed(tiny, **fields)
    user = user_at(tmp_path / "user", served, wire)
    assert {"README.md", "config.json", "upcycle.json"} < set(expected)
    done = user.stream(tiny, **fields)
    check_done(user, done, expected)
    weights = [name for name in expected if name.endswith(".safetensors")]
    assert len(weights) == (1 if fields == PLAIN else SHARDS) or "experts" in fields
    assert done.stdout.splitlines()[1] == f"{user.hub.url}/{REPO}: {len(expected) - 1} files, as they are here"
    assert f"{weights[-1]}: on the Hub, {len(weights)} of {len(weights)}" in done.stderr
    again = user.stream(tiny, **fields)
    check_done(user, again, expected)
    assert not user.hub.requests(ON_MAIN)[1:], "there was nothing to commit"


LOAD = """
import json, sys
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM

place = snapshot_download(sys.argv[1])
_, said = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
print(json.dumps([place, [sorted(names) for names in said.values()]]))
"""


@pytest.mark.slow
def test_it_comes_back(either: User) -> None:
    assert either.stream(Path("demo:tiny"), max_shard_size="1MB").returncode == 0
    (either.place / "load.py").write_text(LOAD)
    place, said = json.loads(either.run("--python", "load.py", REPO).stdout)
    assert not any(said), "keys that are missing, not expected, or of another shape"
    verified = either.run("verify", "demo:tiny", place)
    assert verified.returncode == 0, verified.stdout
    assert "verified" in verified.stdout


@pytest.mark.slow
def test_a_private_repository(user: User, tiny: Path) -> None:
    done = user.run("convert", str(tiny), "--private", *options(stream_to=REPO, **FIELDS))
    assert done.returncode == 0, done.stderr
    assert user.repo.access == "private"
    assert len(shards_on(user.repo, "main")) == SHARDS


# -- cut off ----------------------------------------------------------------------------------------------------------


def kill_before(user: User, model: Path, pattern: str, skip: int = 0, **fields: object) -> None:
    """Kill a conversion while the Hub refuses a request that a pattern finds, after it has let `skip` pass."""
    refused = Later(pattern, 10**6, status=503, skip=skip)
    user.hub.faults.append(refused)
    cut(user, user.begin(model, **fields), lambda: refused.skip < 0)


def kill_after(user: User, model: Path, pattern: str, skip: int = 0) -> None:
    """Kill a conversion when a request is carried out, and before it knows."""
    held_back = Later(pattern, 1, after=0, hold=True, skip=skip)
    user.hub.faults.append(held_back)
    cut(user, user.begin(model), held_back.reached.is_set)


def cut(user: User, run: Run, reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end, "no such request"
        time.sleep(0.005)
    run.kill(signal.SIGKILL)
    assert run.wait().returncode == -signal.SIGKILL
    user.hub.faults.clear()
    user.hub.writing = threading.RLock()  # a request that is held back still has the other one


def go_on(user: User, model: Path, expected: Hashes) -> None:
    """Run it again, and hold what that does against what is there."""
    repo = user.hub.repos.get(REPO)
    branches = [name for name in repo.refs if name != "main"] if repo else []
    there = len(shards_on(repo, branches[0])) if repo and branches else 0
    complete = repo is not None and len(titles(repo)) > 1
    if repo is not None and not complete:
        assert set(held(repo)) == {".gitattributes"}, "nobody has seen any of it"
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
def test_killed_and_run_again(tiny: Path, pushed: Expected, user: User, pattern: str, skip: int) -> None:
    expected = pushed(tiny)
    kill_before(user, tiny, pattern, skip)
    assert len(shards_on(user.repo, working_branch(user.repo))) == (skip or SHARDS)
    assert len([name for name in user.scratch if name.endswith(".safetensors")]) <= 1
    go_on(user, tiny, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wire", "pattern", "skip"), [(wire, *point) for wire in WIRES for point in [*COMMON, *OWN[wire]]]
)
def test_killed_before_any_request(
    tmp_path: Path, tiny: Path, pushed: Expected, served: tuple[Hub, Warm], wire: str, pattern: str, skip: int
) -> None:
    expected = pushed(tiny)
    user = user_at(tmp_path / "user", served, wire)
    kill_before(user, tiny, pattern, skip)
    go_on(user, tiny, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "skip"), CARRIED_OUT)
def test_killed_after_any_change(tiny: Path, pushed: Expected, user: User, pattern: str, skip: int) -> None:
    expected = pushed(tiny)
    kill_after(user, tiny, pattern, skip)
    go_on(user, tiny, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals(tiny: Path, pushed: Expected, user: User, number: int, code: int, word: str) -> None:
    expected = pushed(tiny)
    held_back = Later("PUT /upload/", 1, after=0, hold=True, skip=2)
    user.hub.faults.append(held_back)
    run = user.begin(tiny)
    assert held_back.reached.wait(60)
    run.kill(number)
    done = finish(run)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == f"upcycle: {word}; {GOES_ON}"
    assert user.scratch == []
    go_on(user, tiny, expected)


# -- what is on the branch --------------------------------------------------------------------------------------------

FIRST, SECOND = (f"model-0000{number}-of-000{SHARDS}.safetensors" for number in (1, 2))


def rewritten(user: User, shard: str, **changes: object) -> None:
    """Change a shard's record."""
    commit = user.repo.find(working_branch(user.repo))
    assert commit is not None
    path = f".upcycle/{shard}.json"
    blob = commit.files[path]
    said = {**json.loads(blob.read(0, blob.size)), **changes}
    commit.files[path] = Blob(json.dumps(said).encode())


def broken_shard(user: User) -> None:
    damage(user.hub, user.repo, FIRST, flipped, branch=working_branch(user.repo))


def short_shard(user: User) -> None:
    damage(user.hub, user.repo, FIRST, truncated, branch=working_branch(user.repo))


def broken_record(user: User) -> None:
    damage(user.hub, user.repo, f".upcycle/{FIRST}.json", lambda _: Blob(b"{"), branch=working_branch(user.repo))


def another_shard(user: User) -> None:
    rewritten(user, FIRST, sha256="0" * 64)


def hashes_are_missing(user: User) -> None:
    rewritten(user, FIRST, hashes={})


def hashes_are_nonsense(user: User) -> None:
    rewritten(user, FIRST, hashes=["a", 1])


def no_record(user: User) -> None:
    commit = user.repo.find(working_branch(user.repo))
    assert commit is not None
    del commit.files[f".upcycle/{FIRST}.json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [broken_shard, short_shard, broken_record, another_shard, hashes_are_missing, hashes_are_nonsense, no_record],
)
def test_what_does_not_fit_is_made_again(
    tiny: Path, pushed: Expected, user: User, harm: Callable[[User], None]
) -> None:
    expected = pushed(tiny)
    kill_before(user, tiny, ON_BRANCH, SHARDS - 1)
    harm(user)
    user.hub.log.clear()
    done = user.stream(tiny)
    check_done(user, done, expected)
    made = re.findall(r"(model-\S+): on the Hub", done.stderr)
    assert made == [FIRST, f"model-000{SHARDS}-of-000{SHARDS}.safetensors"]


@pytest.mark.slow
def test_other_work_does_not_mix(tiny: Path, pushed: Expected, copy_of: Callable[[Path], Path], user: User) -> None:
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
        assert held(user.repo) == expected
        own = model == tiny and not fields
        assert len(user.hub.requests(ON_BRANCH)) == (1 if own else SHARDS)
        assert set(user.repo.refs) == ({"main"} if own else {"main", first})


# -- what was there before --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_repository_that_held_another_model(tiny: Path, pushed: Expected, user: User) -> None:
    expected = pushed(tiny)
    assert user.stream(tiny, seed=2, max_shard_size="50KB").returncode == 0
    head = user.repo.find("main")
    assert head is not None
    card = head.files["README.md"].read(0, 10**6) + b"\nMy own words.\n"
    kept = {"notes.txt": b"keep me", "weights/old.safetensors": b"and me"}
    stale = {"pytorch_model.bin": b"old", "tokenizer.json": b"{}", "chat_template.jinja": b"old"}
    user.repo.commit({**kept, **stale, "README.md": card}, title="edited")
    before = held(user.repo)
    kill_before(user, tiny, ON_MAIN)
    assert held(user.repo) == before, "main is as it was until the last commit"
    done = user.stream(tiny)
    assert done.returncode == 0, done.stderr
    now = held(user.repo)
    assert titles(user.repo)[:2] == ["Upload model by upcycle", "edited"]
    assert now.keys() == expected.keys() | kept.keys()
    assert {name for name in expected if now[name] != expected[name]} == {"README.md"}
    head = user.repo.find("main")
    assert head is not None
    text = head.files["README.md"].read(0, 10**6).decode()
    assert "My own words." in text
    assert text.count("seed 2") + text.count("--seed 2") == 0, "its marked block is of the new model"


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_at_once(tiny: Path, pushed: Expected, user: User) -> None:
    expected = pushed(tiny)
    held_back = Later("PUT /upload/", 1, after=0, hold=True, skip=2)
    user.hub.faults.append(held_back)
    first = user.begin(tiny)
    assert held_back.reached.wait(60)
    second = replace(user, place=user.place.with_name("second")).stream(tiny)
    assert second.returncode == 1
    place = user.place / "cache" / "stream"
    assert second.stderr == f"upcycle: error: {place}: another upcycle process is writing the same conversion\n"
    first.kill(signal.SIGKILL)
    first.wait()
    go_on(user, tiny, expected)


def test_a_dry_run_changes_nothing(user: User, tiny: Path) -> None:
    done = user.run("convert", str(tiny), "--dry-run", *options(stream_to=REPO, **FIELDS))
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
def test_options_that_do_not_go_together(user: User, tiny: Path, words: list[str], said: str) -> None:
    done = user.run("convert", str(tiny), *words)
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
def test_tokens_that_do_not_do(user: User, tiny: Path, token: str, said: str) -> None:
    done = user.with_(HF_TOKEN=token).stream(tiny)
    assert done.returncode == 2
    assert said in done.stderr
    assert not token or token not in done.stderr
    assert user.hub.repos == {}
    assert user.scratch == []
    assert not user.hub.requests("commit|preupload|upload")


@pytest.mark.slow
def test_a_token_in_a_file_is_not_published(user: User, tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    model = copy_of(tiny)
    (model / "chat_template.jinja").write_text(f"{{# {TOKEN} #}}")
    done = user.stream(model)
    assert done.returncode == 2
    assert "holds your access token" in done.stderr
    assert user.hub.repos == {}


@pytest.mark.slow
def test_a_hub_that_fails_for_long(tiny: Path, pushed: Expected, user: User) -> None:
    expected = pushed(tiny)
    user.hub.faults.append(Later(ON_BRANCH, 10**6, status=400, skip=3))
    done = user.stream(tiny)
    assert done.returncode == 2
    assert "the Hub refuses this (status 400)" in done.stderr
    assert user.scratch == []
    user.hub.faults.clear()
    go_on(user, tiny, expected)


@pytest.fixture
def small_disk(user: User) -> Iterator[Path]:
    """A disk of 32 kB for the cache."""
    place = user.place / "cache"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_too_small_for_one_shard(tiny: Path, pushed: Expected, user: User, small_disk: Path) -> None:
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


# -- in a recipe ------------------------------------------------------------------------------------------------------


def recipe(user: User, steps: str) -> Path:
    user.place.mkdir(exist_ok=True)
    path = user.place / "recipe.yaml"
    path.write_text(f"name: streamed\ndescription: to the Hub\nsteps:\n{steps}")
    return path


def convert_step(tiny: Path) -> str:
    fields = json.dumps({"model": str(tiny), "stream_to": REPO, **FIELDS})
    return f"  - convert: {fields}\n"


@pytest.mark.slow
def test_a_recipe_streams(tiny: Path, pushed: Expected, user: User) -> None:
    expected = pushed(tiny)
    check_done(user, user.run("run", str(recipe(user, convert_step(tiny)))), expected)


@pytest.mark.parametrize(
    ("step", "lacks"),
    [("verify: {}", "verify lacks moe"), SLOW("generate: {prompt: x}", "generate lacks model"),
     SLOW("push: {repo: someone/other}", "push lacks model"), SLOW("train: {out: o, data: x}", "train lacks model")],
)  # fmt: skip
def test_what_follows_has_no_model(user: User, tiny: Path, step: str, lacks: str) -> None:
    done = user.run("run", str(recipe(user, f"{convert_step(tiny)}  - {step}\n")))
    assert done.returncode == 2
    assert lacks in done.stderr
    assert user.hub.log == []
