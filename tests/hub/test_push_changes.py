"""What a push does to what is on the Hub already: other models, other files, and a card that its owner has edited."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import edit_json, run_convert
from tests.hub.repos import Repo
from tests.hub.server import Hub
from tests.pushing import WRITES, Author, content, held
from upcycle.card import BEGIN, END

NAME = "someone/moe"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A small mixture of four experts."""
    return run_convert(tiny, tmp_path_factory.mktemp("made") / "moe")


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(made, tmp_path / "moe"))


@pytest.fixture
def author(hub: Hub, tmp_path: Path) -> Author:
    """Who may write, by chunks."""
    return Author(hub, tmp_path / "home")


def test_an_earlier_model_goes_with_the_same_commit(hub: Hub, author: Author, model: Path, tiny: Path) -> None:
    sharded = run_convert(tiny, model.with_name("sharded"), max_shard_size="40KB")
    others = {"notes.txt": b"1", "onnx/model.safetensors": b"2", "model.Q8_0.gguf": b"3", "LICENSE": b"4"}
    stale = {
        "chat_template.jinja": b"x", "adapter_config.json": b"{}", "adapter_model.safetensors": b"x",
        "pytorch_model.bin": b"x", "model-00007-of-00009.safetensors": b"x", "lineage.json": b"[]",
    }  # fmt: skip
    repo = hub.repo(NAME, {".gitattributes": b"", **others, **stale})
    first = author.push(sharded, NAME)
    assert first["removed"] == sorted(stale)
    assert held(repo).keys() == others.keys() | {path.name for path in sharded.iterdir()} | {"README.md"}
    second = author.push(model, NAME)
    gone = sorted(path.name for path in sharded.iterdir() if path.name.startswith("model"))
    assert (len(gone), second["removed"]) == (4, gone)
    assert held(repo).keys() == others.keys() | {path.name for path in model.iterdir()} | {"README.md"}
    assert author.push(sharded, NAME)["removed"] == ["model.safetensors"]
    assert len(repo.commits) == 4  # one each
    assert {name: content(repo, name) for name in others} == others


def test_more_files_on_request(hub: Hub, author: Author, model: Path) -> None:
    for name in ("train.log", "notes.txt", "plots/more/x.txt", "LICENSE"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
    assert author.push(model, NAME)["left"] == ["notes.txt", "plots/", "train.log"]
    told = author.push(model, NAME, "--include", "*.log", "--include", "plots/**")
    assert {"plots/more/x.txt", "train.log"} == set(told["uploaded"]) - {"README.md"}
    assert told["left"] == ["notes.txt"]
    assert content(hub.repos[NAME], "plots/more/x.txt") == b"plots/more/x.txt"
    assert author.push(model, NAME)["removed"] == []  # once there, they stay
    assert "--include matches no file" in author.refused(model, NAME, "--include", "*.none")


# -- the card ---------------------------------------------------------------------------------------------------------


def card(repo: Repo) -> str:
    return content(repo, "README.md").decode()


def test_a_card_that_was_edited_on_the_hub(hub: Hub, author: Author, model: Path) -> None:
    author.push(model, NAME)
    repo = hub.repos[NAME]
    first = card(repo)
    assert first.count(BEGIN) == first.count(END) == 1
    edited = first.replace("# moe\n", "# My mixture\n\nIt is kind.\n").replace("---\n", "---\nlanguage: en\n", 1)
    edited += "\n## Thanks\n\nto all\n"
    repo.commit({"README.md": edited.encode()})
    assert author.push(model, NAME)["uploaded"] == []
    assert card(repo) == edited
    repo.commit({"README.md": spoilt(edited).encode()})
    assert author.push(model, NAME)["uploaded"] == ["README.md"]
    assert card(repo) == edited


def spoilt(text: str) -> str:
    """The card with another text in the marked block."""
    start, _, rest = text.partition(BEGIN)
    return f"{start}{BEGIN}\nnonsense\n{END}{rest.partition(END)[2]}"


def test_a_card_that_was_edited_here(hub: Hub, author: Author, model: Path) -> None:
    author.push(model, NAME)
    repo = hub.repos[NAME]
    mine = spoilt(card(repo)).replace("# moe\n", "# Mine\n")
    (model / "README.md").write_text(mine)
    repo.commit({"README.md": b"# Theirs\n"})
    assert author.push(model, NAME)["uploaded"] == ["README.md"]
    assert "# Mine\n" in card(repo)
    assert "Theirs" not in card(repo)
    assert "nonsense" not in card(repo)
    assert (model / "README.md").read_text() == mine  # what is here is left as it is
    assert author.push(model, NAME)["uploaded"] == []


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (f"{BEGIN}\n{BEGIN}\n{END}\n".encode(), "does not say what of it is upcycle's"),
        (f"{END}\n{BEGIN}\n".encode(), "the wrong way round"),
        (b"\xff\xfe#", "is no text in UTF-8"),
    ],
)
def test_a_card_that_cannot_be_gone_on_with(hub: Hub, author: Author, model: Path, written: bytes, words: str) -> None:
    repo = hub.repo(NAME, {".gitattributes": b"", "README.md": written})
    assert words in author.refused(model, NAME)
    assert held(repo).keys() == {"README.md"}
    assert author.push(model, NAME, "--no-card")["commit"] == repo.refs["main"]
    assert content(repo, "README.md") == written


# -- what is refused --------------------------------------------------------------------------------------------------


def without_receipt(model: Path) -> Path:
    (model / "upcycle.json").unlink()
    return model


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "receipt": (lambda model: edit_json(model / "config.json", rope_theta=1.0), "is not what the receipt says"),
    "weights": (lambda model: (model / "model.safetensors").write_bytes(b"x"), "model.safetensors"),
    "class": (
        lambda model: edit_json(without_receipt(model) / "config.json", hidden_size=64),
        "by MixtralForCausalLM of transformers",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_sound_never_leaves(hub: Hub, author: Author, model: Path, case: str) -> None:
    damage, words = CASES[case]
    damage(model)
    assert words in author.refused(model, NAME)
    assert not hub.requests(WRITES)
