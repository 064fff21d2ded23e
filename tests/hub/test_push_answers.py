"""What the Hub answers that it should not, what `--base` may say, and what is told beside a push."""

from pathlib import Path

import pytest

from tests.conftest import run_convert
from tests.hub.server import Hub
from tests.pushing import Author, held
from upcycle.pipeline.locate import BUILT_IN

NAME = "someone/moe"
TINY = BUILT_IN["demo:tiny"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with two experts."""
    return run_convert(Path("demo:tiny"), tmp_path_factory.mktemp("answers") / "moe", experts=2)


@pytest.fixture
def author(hub: Hub, tmp_path: Path) -> Author:
    """Who may write, and hardly waits before another attempt."""
    return Author(hub, tmp_path / "home").impatient()


@pytest.mark.parametrize(
    "pattern",
    [
        "GET /api/whoami-v2",
        "POST /api/repos/create",
        "GET /api/models/someone/moe/refs",
        "POST .*/preupload/",
        "POST .*/commit/",
    ],
)
@pytest.mark.parametrize("body", [b"<html>log in here</html>", b"[]", b"null"])
def test_answers_that_no_hub_gives_are_told_as_such(
    hub: Hub, author: Author, model: Path, pattern: str, body: bytes
) -> None:
    hub.plant(pattern, times=1000, status=200, body=body)
    words = ("--revision", "next") if "refs" in pattern else ()
    line = author.refused(model, NAME, *words, code=1)
    assert line.startswith(("someone/moe: ", "moe: "))
    assert f"{hub.url} does not answer as a Hub does" in line
    assert NAME not in hub.repos or not held(hub.repos[NAME])


def test_a_repository_that_cannot_be_made_is_refused_before_anything(hub: Hub, author: Author, model: Path) -> None:
    for words in ((), ("--dry-run",)):
        line = author.refused(model, "stranger/moe", *words)
        assert line.startswith("stranger/moe: is not there, and this token cannot make it; found the owner stranger")
        assert line.endswith("expected org or someone")
    assert hub.requests("POST") == []


def test_a_dry_run_says_what_would_become_of_the_repository(hub: Hub, author: Author, model: Path) -> None:
    said = author.upcycle("push", model, NAME, "--dry-run", "--private").stdout
    assert "someone/moe: would be made, private; nothing was changed" in said
    assert hub.repos == {}
    made = author.upcycle("push", model, NAME).stdout
    assert (
        f"{hub.url}/someone/moe: 7 files, as they are here; commit {hub.repos[NAME].refs['main'][:8]}; public" in made
    )
    again = author.upcycle("push", model, NAME).stdout
    assert "nothing new" in again
    assert "is there, public; nothing was changed" in author.upcycle("push", model, NAME, "--dry-run").stdout


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("demo:tiny", "--base is no Hub id; found demo:tiny"),
        ("someone/nowhere", "--base names no model that can be read: someone/nowhere"),
    ],
)
def test_a_base_that_nobody_finds_is_refused(hub: Hub, author: Author, model: Path, base: str, words: str) -> None:
    assert words in author.refused(model, NAME, "--base", base)
    assert hub.repos == {}


def test_an_adapter_names_the_model_that_it_was_made_for(hub: Hub, author: Author, tmp_path: Path) -> None:
    author.upcycle("attach", "demo:tiny", tmp_path / "adapter", "--experts", "2", "--rank", "2")
    other = run_convert(Path("demo:tiny"), tmp_path / "other", experts=2)
    hub.repo("someone/other", {path.name: path for path in other.iterdir()})
    assert "someone/other on the Hub is another model" in author.refused(
        tmp_path / "adapter", "someone/adapter", "--base", "someone/other"
    )
    hub.repo("someone/tiny", {path.name: path for path in TINY.iterdir()})
    author.push(tmp_path / "adapter", "someone/adapter", "--base", "someone/tiny")


def test_a_card_of_the_directory_that_replaces_the_hubs_is_told(hub: Hub, author: Author, tmp_path: Path) -> None:
    model = run_convert(Path("demo:tiny"), tmp_path / "moe", experts=2)
    author.push(model, NAME)
    card = held(hub.repos[NAME])["README.md"].read(0, 10**6)
    hub.repos[NAME].commit({"README.md": card.replace(b"# moe", b"# What I wrote on the Hub")})
    (model / "README.md").write_text("---\nlicense: mit\n---\n# What I wrote here\n")
    notes = author.push(model, NAME)["notes"]
    assert notes == ["README.md of the directory takes the place of the Hub's card, which said something else"]
    assert author.push(model, NAME)["notes"] == []


def test_a_hub_that_is_down_is_named(author: Author, model: Path) -> None:
    away = author.with_(HF_ENDPOINT="http://127.0.0.1:9")
    line = away.refused(model, NAME, code=1)
    assert line.startswith("someone/moe: http://127.0.0.1:9 is not reached, or breaks off (")
