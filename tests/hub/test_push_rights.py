"""Who may not publish and what may not be published: rights, names, and the token, which is found nowhere."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_convert
from tests.hub.access import READ_TOKEN, TOKEN
from tests.hub.server import Hub
from tests.pushing import UPLOADS, WAYS, Author, held

NAME = "someone/moe"

PUT, BLOCKS = "PUT /upload/", "POST /v1/xorbs/"
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


# -- who may not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "repo", "words"),
    [
        ({"HF_TOKEN": "hf_wrong"}, NAME, "the Hub does not know this token;"),
        ({"HF_TOKEN": READ_TOKEN}, NAME, "this token may not write here ("),
        ({}, "others/moe", "this token may not write here ("),
        (
            {},
            "elsewhere/moe",
            "is not there, and this token cannot make it; found the owner elsewhere",
        ),
        ({"HF_TOKEN": ""}, NAME, "there is no token to write with; `hf auth login` stores a token that may write"),
        ({"HF_HUB_OFFLINE": "1"}, NAME, "the Hub must not be asked (HF_HUB_OFFLINE is set); unset it to push"),
        ({}, "a/b/c", "is no name of a repository; expected org/name, or name"),
        ({}, "..", "is no name of a repository; expected org/name, or name"),
        ({}, "someone/a--b", "is no name of a repository; expected org/name, or name"),
        ({}, "someone/moe@v1", "is no name of a repository; expected org/name, or name"),
    ],
)
def test_who_and_what_is_refused(
    hub: Hub, author: Author, model: Path, fields: dict[str, str], repo: str, words: str
) -> None:
    hub.repo("others/moe", {"config.json": b"{}"})
    line = author.with_(**fields).refused(model, repo)
    assert line.startswith(f"{repo}: {words}")
    assert held(hub.repos["others/moe"]).keys() == {"config.json"}
    assert NAME not in hub.repos
    assert not hub.requests(UPLOADS)


@pytest.mark.parametrize("token", [READ_TOKEN, "hf_wrong"])
def test_a_token_that_may_not_write_to_what_is_there(hub: Hub, author: Author, model: Path, token: str) -> None:
    repo = hub.repo(NAME, {"config.json": b"{}"})
    words = "this token may not write here" if token == READ_TOKEN else "the Hub does not know this token"
    assert words in author.with_(HF_TOKEN=token).refused(model, NAME)
    assert words in author.with_(HF_TOKEN=token).refused(model, NAME, "--create-pr")
    assert set(held(repo)) == {"config.json"}
    assert not repo.pulls


@pytest.mark.parametrize(
    ("way", "pattern"), [("lfs", PUT), ("lfs", "objects/batch"), ("xet", "xet-write-token"), ("xet", BLOCKS)]
)
@pytest.mark.parametrize("status", [pytest.param(401, marks=SLOW), 403])
def test_rights_that_are_lost_on_the_way(
    hub: Hub, author: Author, model: Path, way: str, pattern: str, status: int
) -> None:
    hub.plant(pattern, times=100, status=status)
    line = author.with_(**WAYS[way]).refused(model, NAME)
    assert ("the Hub does not know this token" if status == 401 else "this token may not write here") in line
    assert not held(hub.repos[NAME])


# -- the token --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (None, {}),
        pytest.param("GET /api/whoami", {"status": 500}, marks=SLOW),
        (COMMIT, {"status": 400}),
        pytest.param(COMMIT, {"status": 403}, marks=SLOW),
        (UPLOADS, {"status": 500}),
        pytest.param(UPLOADS, {"upload_after": 100_000}, marks=SLOW),
        pytest.param("GET .*/revision/", {"status": 404}, marks=SLOW),
        pytest.param("POST .*/preupload/", {"status": 422}, marks=SLOW),
        pytest.param("POST /api/repos/create", {"status": 401}, marks=SLOW),
    ],
)
def test_the_token_is_found_nowhere(
    hub: Hub, either: Author, model: Path, tmp_path: Path, pattern: str | None, fault: dict[str, Any]
) -> None:
    """Not even where the Hub answers with it."""
    echo = {"X-Error-Message": f"no rights for Bearer {TOKEN}", "X-Request-Id": TOKEN}
    if pattern == UPLOADS:
        del echo["X-Request-Id"]  # the chunk store, which never sees the token, has them in its client's log
    if pattern:
        hub.plant(pattern, times=100, headers=echo, **fault)
    done = either.start("--debug", "push", model, NAME, "--json").finish()
    assert (done.returncode == 0) == (pattern is None), done.stderr
    assert TOKEN not in done.stdout + done.stderr
    if "status" in fault and fault["status"] != 500 and pattern != "GET .*/revision/":
        assert "no rights for Bearer ..." in done.stderr
    places = [path for folder in (tmp_path, model) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in places if TOKEN.encode() in path.read_bytes()]
    commits = [commit for repo in hub.repos.values() for commit in repo.commits.values()]
    assert not [name for commit in commits for name, blob in commit.files.items() if has_token(blob)]
    assert not [commit for commit in commits if TOKEN in commit.title + commit.description]


def has_token(blob: Any) -> bool:
    return TOKEN.encode() in blob.read(0, blob.size)


@pytest.mark.parametrize("name", ["README.md", "tokenizer_config.json", "notes.md"])
def test_a_token_in_a_file_is_not_published(hub: Hub, author: Author, tiny: Path, copy_of: Any, name: str) -> None:
    leaking = copy_of(tiny)
    (leaking / name).write_text(f'{{"a": "HF_TOKEN={TOKEN}"}}')
    line = author.refused(leaking, NAME)
    assert line == f"{leaking / name}: holds your access token, and would be published"
    assert not hub.repos
