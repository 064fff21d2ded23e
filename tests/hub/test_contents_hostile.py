"""Directories that somebody else has made: names, configs and files that must not be published as they are."""

import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import edit_json, run_convert
from upcycle.errors import CheckpointError, InputError
from upcycle.hub.contents import Contents, Item, read_contents
from upcycle.hub.secrets import refuse_secret_text, refuse_secrets
from upcycle.moe.fit import check_fit

TOKEN = "hf_aTokenThatIsNone"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A mixture of four experts in one file."""
    return run_convert(tiny, tmp_path_factory.mktemp("made") / "moe")


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "moe"))


def put(model: Path, *names: str) -> None:
    for name in names:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("x")


def published(contents: Contents, name: str) -> bytes:
    return next(item for item in contents.items if item.name == name).read()


def taken(contents: Contents) -> set[str]:
    return {item.name for item in contents.items}


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="such names cannot be")
def test_a_name_that_is_no_text(model: Path) -> None:
    for name in (b"caf\xe9.md", b"two\nlines.md"):
        (model / os.fsdecode(name)).touch()
    contents = read_contents(model, ("*.json",))
    assert contents.left == (r"caf\udce9.md", r"two\nlines.md")
    assert all(name.isprintable() for name in taken(contents))
    with pytest.raises(InputError, match=r"--include matches no file; found caf\*"):
        read_contents(model, ("caf*",))


def test_what_is_hidden_anywhere_stays(model: Path) -> None:
    put(model, ".env", "logs/.env", "logs/.git/config", "logs/.cache/x.txt", "logs/x.txt", ".cache/x.txt")
    contents = read_contents(model, ("**",))
    assert {name for name in taken(contents) if "/" in name} == {"logs/x.txt"}
    assert contents.left == (".cache/", ".env", "logs/.cache/", "logs/.env", "logs/.git/")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("logs/*", {"logs/a.txt"}),
        ("logs/**", {"logs/a.txt", "logs/deep/b.txt", "logs/deep/er/c.txt"}),
        ("**/*.txt", {"d.txt", "logs/a.txt", "logs/deep/b.txt", "logs/deep/er/c.txt"}),
        ("*.txt", {"d.txt"}),
        ("logs/*/b.txt", {"logs/deep/b.txt"}),
    ],
)
def test_what_patterns_fit(model: Path, pattern: str, found: set[str]) -> None:
    put(model, "logs/a.txt", "logs/deep/b.txt", "logs/deep/er/c.txt", "d.txt")
    assert taken(read_contents(model, (pattern,))) - taken(read_contents(model)) == found


def test_what_of_a_directory_stays(model: Path) -> None:
    put(model, "logs/a.txt", "logs/b.log", "logs/deep/c.txt", "plots/losses.png", "plots/data.csv")
    assert read_contents(model).left == ("logs/", "plots/data.csv")
    assert read_contents(model, ("logs/*.txt",)).left == ("logs/b.log", "logs/deep/", "plots/data.csv")


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../*", "logs/../../x", "C:\\x", "\\x"])
def test_patterns_that_lead_out(model: Path, pattern: str) -> None:
    with pytest.raises(InputError, match="--include leads out of the directory"):
        read_contents(model, (pattern,))


# -- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "foo"}, "MixtralForCausalLM of transformers cannot be made of this config (KeyError: 'foo')"),
        ({"rope_parameters": {"rope_type": "zzz", "rope_theta": 1.0}}, "(KeyError: 'zzz')"),
        ({"num_hidden_layers": "x"}, "knows no causal language model of this config (StrictDataclass"),
        ({"dtype": "nope"}, "nope"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "of transformers cannot be made of this config"),
        ({"num_experts_per_tok": 5}, "is not a number of experts that there are; found 5, expected 1 to 4"),
        ({"num_experts_per_tok": "2"}, "is not a number of experts that there are; found '2', expected 1 to 4"),
        ({"num_experts": 8}, "num_local_experts and num_experts differ; found 4, 8"),
        ({"num_hidden_layers": 10**9}, "more layers than tensors; found 1,000,000,000"),
    ],
)
def test_configs_that_make_no_model(
    model: Path, changes: dict[str, Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    contents = read_contents(model)
    edit_json(model / "config.json", **changes)
    with pytest.raises(InputError) as error:
        check_fit(model, contents.shapes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


PLACES = ["/home/me/llama", "~/llama", "\\\\host\\llama", "C:\\llama", "./llama"]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_of_a_machine_is_not_published(model: Path, place: str) -> None:
    receipt = json.loads((model / "upcycle.json").read_bytes())
    edit_json(model / "config.json", _name_or_path=place)
    data = (model / "config.json").read_bytes()
    receipt["files"]["config.json"] = hashlib.sha256(data).hexdigest()
    (model / "upcycle.json").write_text(json.dumps(receipt))
    put_verification(model, {})
    (model / "tokenizer_config.json").write_text(json.dumps({"name_or_path": place, "model_max_length": 9}))
    contents = read_contents(model)
    assert "_name_or_path" not in contents.config
    config, told = (json.loads(published(contents, name)) for name in ("config.json", "upcycle.json"))
    assert config == {key: value for key, value in json.loads(data).items() if key != "_name_or_path"}
    assert json.loads(published(contents, "tokenizer_config.json")) == {"model_max_length": 9}
    files = {**receipt["files"], "config.json": hashlib.sha256(published(contents, "config.json")).hexdigest()}
    assert told == {**receipt, "files": files}
    entry = json.loads(published(contents, "verify.json"))
    assert entry["receipt_sha256"] == hashlib.sha256(published(contents, "upcycle.json")).hexdigest()
    assert (model / "config.json").read_bytes() == data


def test_a_name_on_the_hub_is_published(model: Path) -> None:
    (model / "upcycle.json").unlink()
    edit_json(model / "config.json", _name_or_path="org/llama")
    assert published(read_contents(model), "config.json") == (model / "config.json").read_bytes()


def test_a_conversion_writes_no_such_place(tiny: Path, tmp_path: Path) -> None:
    dense = Path(shutil.copytree(tiny, tmp_path / "dense"))
    edit_json(dense / "config.json", _name_or_path=str(dense))
    for path in run_convert(dense, tmp_path / "moe").glob("*.json"):
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


# -- a verification ---------------------------------------------------------------------------------------------------


def put_verification(model: Path, weights: dict[str, str], receipt: str | None = None) -> None:
    digest = receipt or hashlib.sha256((model / "upcycle.json").read_bytes()).hexdigest()
    entry = {
        "made": "verification", "receipt_sha256": digest, "passed": True, "lines": [], "parity": {}, "weights": weights,
    }  # fmt: skip
    (model / "verify.json").write_text(json.dumps(entry))


def weights_of(model: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in model.glob("*.safetensors")}


def test_weights_that_were_verified(model: Path) -> None:
    put_verification(model, weights_of(model))
    items = {item.name: item for item in read_contents(model).items}
    assert {name: item.verified for name, item in items.items() if item.verified} == weights_of(model)
    assert "verify.json" in items


def test_a_verification_of_something_else_stays_here(model: Path) -> None:
    put_verification(model, weights_of(model), receipt="0" * 64)
    contents = read_contents(model)
    assert contents.left == ("verify.json",)
    assert not any(item.verified for item in contents.items)
    (model / "upcycle.json").unlink()
    assert read_contents(model).left == ("verify.json",)


def test_a_verification_of_other_files(model: Path) -> None:
    put_verification(model, {**weights_of(model), "model-2.safetensors": "0" * 64})
    with pytest.raises(CheckpointError, match=r"are not the weights that were verified; found model-2\.safetensors"):
        read_contents(model)
    put_verification(model, {"model.safetensors": 1})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="damaged verification"):
        read_contents(model)


# -- changes while it is looked at ------------------------------------------------------------------------------------


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    fact = path.stat()
    os.utime(other, ns=(fact.st_atime_ns, fact.st_mtime_ns))
    other.replace(path)


def touched(path: Path) -> None:
    os.utime(path, ns=(0, 0))


CHANGES: list[Callable[[Path], object]] = [Path.unlink, replaced, touched, lambda path: os.truncate(path, 9)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_another_than_was_checked(model: Path, change: Callable[[Path], object]) -> None:
    item = next(item for item in read_contents(model).items if item.name == "model.safetensors")
    item.check_unchanged()
    size = item.size
    change(model / "model.safetensors")
    assert item.size == size
    for look in (item.check_unchanged, item.read):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: changed since it was checked"):
            look()


# -- secrets ----------------------------------------------------------------------------------------------------------

ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in TOKEN)
HIDDEN: dict[str, Callable[[], tuple[str, bytes]]] = {
    "UTF-8": lambda: ("notes.md", f"my {TOKEN}!".encode()),
    "UTF-16": lambda: ("notes.txt", f"my {TOKEN}!".encode("utf-16")),
    "UTF-16, big end first": lambda: ("notes.txt", TOKEN.encode("utf-16-be")),
    "JSON": lambda: ("x.json", f'"{ESCAPED}"'.encode()),
    "JSON, some of it": lambda: ("x.json", f'"hf_\\u0061{TOKEN[4:]}"'.encode()),
    "between two pieces": lambda: ("train.log", b" " * 3_999_990 + TOKEN.encode() + b" " * 100),
    "escaped between two pieces": lambda: ("train.log", b" " * 3_999_990 + ESCAPED.encode() + b" " * 100),
    "a header": lambda: ("x.safetensors", struct.pack("<Q", 40) + f'{{"a":"{TOKEN}"}}'.encode().ljust(40)),
    "a GGUF file": lambda: ("x.gguf", b"GGUF" + TOKEN.encode() + bytes(100)),
    "a name": lambda: (f"{TOKEN}.md", b"x"),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_a_token_that_would_be_published(made: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, data = HIDDEN[case]()
    contents = read_contents(made).with_items(Item(name, data))
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    refuse_secrets(contents)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(InputError, match="holds your access token, and would be published"):
        refuse_secrets(contents)


def test_weights_are_not_searched(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    data = struct.pack("<Q", 2) + b"{}" + TOKEN.encode()
    refuse_secrets(read_contents(made).with_items(Item("x.safetensors", data)))


def test_a_token_in_a_title(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    refuse_secret_text("--message", None)
    refuse_secret_text("--message", "Upload")
    with pytest.raises(InputError, match="--message holds your access token"):
        refuse_secret_text("--message", f"with {TOKEN}")
