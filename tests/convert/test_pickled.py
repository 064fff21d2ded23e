"""Pickled checkpoints: refused unless asked for, then read as tensors and nothing else, to the very same bytes."""

import collections
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import contents, run_convert
from upcycle.errors import CheckpointError, InputError
from upcycle.pipeline.locate import locate
from upcycle.pipeline.stages import plan, verify
from upcycle.requests import Plan, Verify

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"

Tensors = dict[str, Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("UPCYCLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tensors(tiny: Path) -> Tensors:
    return load_file(tiny / "model.safetensors")


@pytest.fixture
def pickled(tiny: Path, tensors: Tensors, tmp_path: Path) -> Path:
    """The twin of `tiny` as `torch.save` writes it, with a generation config."""
    return save(tiny, tensors, tmp_path / "pickled")


def save(tiny: Path, value: Any, directory: Path, **options: Any) -> Path:
    directory.mkdir()
    (directory / "config.json").write_bytes((tiny / "config.json").read_bytes())
    (directory / "generation_config.json").write_text('{"do_sample": true}')
    torch.save(value, directory / SINGLE, **options)
    return directory


def shard(directory: Path, tensors: Tensors, count: int = 3) -> Path:
    """Spread `tensors` over shards in place of the single file, and write the index."""
    (directory / SINGLE).unlink(missing_ok=True)
    weight_map = {name: f"pytorch_model-{n % count + 1:05d}.bin" for n, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        torch.save({name: tensors[name] for name in tensors if weight_map[name] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def weights(directory: Path) -> dict[str, bytes]:
    """Name -> dtype, shape and bytes of every tensor, wherever it lies."""
    found = {}
    for path in directory.glob("*.safetensors"):
        for name, value in load_file(path).items():
            found[name] = f"{value.dtype} {tuple(value.shape)} ".encode() + value.view(torch.uint8).numpy().tobytes()
    return found


def refusal(directory: Path, cache: Path) -> InputError:
    """The error when the directory is asked for with --allow-pickle, which leaves nothing in the cache."""
    with pytest.raises(InputError) as caught:
        locate(str(directory), allow_pickle=True)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1900
    assert not [path for path in cache.rglob("*") if path.is_file() or path.name.startswith("unfinished-")]
    return caught.value


# -- the same as the safetensors twin ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_second_process")
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_output_is_that_of_the_twin(
    tiny: Path, tensors: Tensors, tmp_path: Path, options: dict[str, Any], noise: float
) -> None:
    model = save(tiny, tensors, tmp_path / "pickled", **options)
    moe = run_convert(model, tmp_path / "moe", allow_pickle=True, noise=noise)
    twin = run_convert(tiny, tmp_path / "twin", noise=noise)
    assert weights(moe) == weights(twin)
    assert (moe / "config.json").read_bytes() == (twin / "config.json").read_bytes()
    assert (moe / "generation_config.json").read_bytes() == (model / "generation_config.json").read_bytes()
    assert verify(Verify(dense=str(model), moe=str(moe), allow_pickle=True, tensors_only=True)).passed
    assert verify(Verify(dense=str(model), moe=str(moe), allow_pickle=True)).passed


def test_shards(tiny: Path, pickled: Path, tensors: Tensors, tmp_path: Path) -> None:
    moe = run_convert(shard(pickled, tensors), tmp_path / "moe", allow_pickle=True)
    assert weights(moe) == weights(run_convert(tiny, tmp_path / "twin"))
    assert verify(Verify(dense=str(pickled), moe=str(moe), allow_pickle=True, tensors_only=True)).passed


def test_parameters_and_ordered_dictionaries(tiny: Path, tensors: Tensors, tmp_path: Path) -> None:
    """As `model.state_dict()` and older programs save them."""
    value = collections.OrderedDict((name, torch.nn.Parameter(tensor)) for name, tensor in tensors.items())
    moe = run_convert(save(tiny, value, tmp_path / "pickled"), tmp_path / "moe", allow_pickle=True)
    assert weights(moe) == weights(run_convert(tiny, tmp_path / "twin"))


def test_tensors_that_are_not_contiguous(tiny: Path, tensors: Tensors, tmp_path: Path) -> None:
    value = {name: x.T.contiguous().T if x.dim() == 2 else x.repeat_interleave(2)[::2] for name, x in tensors.items()}
    assert not any(x.is_contiguous() for x in value.values())
    moe = run_convert(save(tiny, value, tmp_path / "pickled"), tmp_path / "moe", allow_pickle=True)
    assert weights(moe) == weights(run_convert(tiny, tmp_path / "twin"))


@pytest.mark.usefixtures("no_second_process")
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_tied_weights_that_share_memory(dense: Callable[[str], Path], tmp_path: Path, options: dict[str, Any]) -> None:
    tied = dense("llama_tied")
    value = load_file(tied / "model.safetensors")
    assert HEAD not in value
    value[HEAD] = value[EMBEDDINGS]
    model = save(tied, value, tmp_path / "pickled", **options)
    assert (model / SINGLE).stat().st_size < sum(x.nbytes for x in value.values()) + 20_000, "saved twice"
    moe = run_convert(model, tmp_path / "moe", allow_pickle=True)
    assert weights(moe) | {HEAD: b""} == weights(run_convert(tied, tmp_path / "twin")) | {HEAD: b""}
    assert verify(Verify(dense=str(model), moe=str(moe), allow_pickle=True)).passed


def test_the_receipt_names_the_model_and_no_cache(pickled: Path, tmp_path: Path, cache: Path) -> None:
    moe = run_convert(pickled, tmp_path / "moe", allow_pickle=True)
    receipt = json.loads((moe / "upcycle.json").read_bytes())
    assert receipt["source"]["name"] == receipt["recipe"]["model"] == "pickled"
    assert str(cache) not in (moe / "upcycle.json").read_text()


def test_the_receipt_names_a_model_of_the_hub(pickled: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0123456789" * 4)
    snapshot.parent.mkdir(parents=True)
    pickled.rename(snapshot)
    receipt = json.loads((run_convert(snapshot, tmp_path / "moe", allow_pickle=True) / "upcycle.json").read_bytes())
    assert (receipt["source"]["name"], receipt["source"]["revision"]) == ("org/name", snapshot.name)


# -- the cache --------------------------------------------------------------------------------------------------------


def test_the_second_call_uses_the_cache(pickled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = locate(str(pickled), allow_pickle=True)
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read again"))
    assert locate(str(pickled), allow_pickle=True) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before


@pytest.mark.parametrize("name", [SINGLE, "config.json", "generation_config.json", "tokenizer.model"])
def test_a_changed_file_is_read_anew(pickled: Path, tensors: Tensors, name: str) -> None:
    """Also when its size and the time of its last change say that it is the same."""
    (pickled / "tokenizer.model").write_bytes(b"first")
    first = locate(str(pickled), allow_pickle=True)
    facts = (pickled / name).stat()
    if name == SINGLE:
        torch.save({key: -value for key, value in tensors.items()}, pickled / SINGLE)
    else:
        (pickled / name).write_bytes((pickled / name).read_bytes()[::-1])
    os.utime(pickled / name, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    second = locate(str(pickled), allow_pickle=True)
    assert second != first
    if name == SINGLE:
        assert (pickled / SINGLE).stat().st_size == facts.st_size
        assert torch.equal(load_file(second / "model.safetensors")[HEAD], -tensors[HEAD])
    else:
        assert (second / name).read_bytes() == (pickled / name).read_bytes()


def test_models_of_one_name_are_kept_apart(tiny: Path, pickled: Path, tensors: Tensors, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = save(tiny, {name: -value for name, value in tensors.items()}, tmp_path / "other" / "pickled")
    for path in other.iterdir():
        os.utime(path, ns=(1, 1))
        os.utime(pickled / path.name, ns=(1, 1))
    one, two = (locate(str(model), allow_pickle=True) for model in (pickled, other))
    assert torch.equal(load_file(one / "model.safetensors")[HEAD], -load_file(two / "model.safetensors")[HEAD])


@pytest.mark.parametrize("moment", ["upcycle.foreign.cache._finish", "safetensors.torch.save_file"])
def test_what_a_kill_leaves_does_not_count_as_done(pickled: Path, cache: Path, moment: str) -> None:
    module, name = moment.rsplit(".", 1)
    kill = f"import os, {module} as m; m.{name} = lambda *_: os.kill(os.getpid(), {signal.SIGKILL:d})"
    code = f"{kill}; from upcycle.pipeline.locate import locate; locate({str(pickled)!r}, allow_pickle=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = list(cache.rglob("unfinished-*"))
    assert len(left) == 1
    made = locate(str(pickled), allow_pickle=True)
    assert left[0] not in (made, *made.parents)
    assert len(load_file(made / "model.safetensors")) == 2 * 9 + 3


def test_the_cache_is_for_others_to_read(pickled: Path) -> None:
    made = locate(str(pickled), allow_pickle=True)
    assert made.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o044 for path in made.iterdir()} == {0o044}


# -- without the option -----------------------------------------------------------------------------------------------


def test_without_the_option_it_is_refused_and_not_read(pickled: Path, cache: Path, tmp_path: Path) -> None:
    (pickled / SINGLE).write_bytes(pickle.dumps(Evil(f"open({str(tmp_path / 'ran')!r}, 'w')")))
    for ask in (lambda: plan(Plan(model=str(pickled))), lambda: run_convert(pickled, tmp_path / "moe")):
        with pytest.raises(CheckpointError) as caught:
            ask()
        assert str(caught.value) == (
            f"{pickled}: holds pickled weights, which can run code when they are read; expected model.safetensors or "
            "model.safetensors.index.json; --allow-pickle reads them as tensors and nothing else"
        )
    assert not (tmp_path / "ran").exists()
    assert not cache.exists()


def test_safetensors_beside_are_preferred(pickled: Path, tiny: Path, cache: Path) -> None:
    (pickled / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    (pickled / SINGLE).write_bytes(b"garbage")
    assert locate(str(pickled), allow_pickle=True) == pickled
    assert not cache.exists()


@pytest.mark.parametrize("name", ["model.pt", "consolidated.00.pth", "pytorch_model-00001-of-00002.bin"])
def test_other_names_are_not_read(pickled: Path, cache: Path, name: str) -> None:
    (pickled / SINGLE).rename(pickled / name)
    assert str(refusal(pickled, cache)) == (
        f"{pickled}: holds pickled weights under other names than are read; found '{name}', "
        f"expected {SINGLE} or {INDEX}"
    )


# -- programs in place of tensors -------------------------------------------------------------------------------------


class Evil:
    """What runs a line of Python when it is unpickled."""

    def __init__(self, line: str, function: Callable[..., Any] = exec) -> None:
        self.line = line
        self.function = function

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.function, (self.line,)


def attacks(mark: Path) -> dict[str, Any]:
    return {
        "exec": Evil(f"open({str(mark)!r}, 'w')"),
        "eval": Evil(f"open({str(mark)!r}, 'w')", eval),
        "os.system": Evil(f"touch {mark}", os.system),
        "open": Evil(str(mark), open),
        "subprocess": Evil(f"touch {mark}", subprocess.getoutput),
        "torch.load": Evil(str(mark), torch.load),
        "among tensors": {"model.norm.weight": torch.zeros(3), "x": Evil(f"touch {mark}", os.system)},
    }


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", attacks(Path()))
def test_a_program_is_not_run(pickled: Path, tmp_path: Path, cache: Path, name: str, options: dict[str, Any]) -> None:
    torch.save(attacks(tmp_path / "ran")[name], pickled / SINGLE, **options)
    error = refusal(pickled, cache)
    assert (error.what, error.where) == (
        "holds more than tensors, or is damaged; it was not run",
        str(pickled / SINGLE),
    )
    assert not (tmp_path / "ran").exists()


def test_the_command_line_exits_2(pickled: Path, tmp_path: Path, cache: Path) -> None:
    torch.save(attacks(tmp_path / "ran")["os.system"], pickled / SINGLE)
    words = ["convert", str(pickled), str(tmp_path / "moe"), "--allow-pickle"]
    done = subprocess.run([sys.executable, "-m", "upcycle.cli", *words], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"upcycle: {pickled} is read once, into {cache}")
    assert second.startswith(f"upcycle: error: {pickled / SINGLE}: holds more than tensors, or is damaged; ")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "moe").exists()
    assert contents(cache) == {}


# -- damaged files ----------------------------------------------------------------------------------------------------


def compressed(path: Path) -> None:
    """Compress one member: where the file is mapped, torch would take its bytes and those behind it for weights."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    chosen = next(name for name in members if name.endswith("/data/0"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if name == chosen else zipfile.ZIP_STORED)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "a zip's first bytes": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)),
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut at the end": lambda path: os.truncate(path, path.stat().st_size - 1),
    "a zip of something else": lambda path: zipfile.ZipFile(path, "w").close(),
    "a bare pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "text": lambda path: path.write_text("<!DOCTYPE html>"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file(pickled: Path, cache: Path, name: str) -> None:
    DAMAGE[name](pickled / SINGLE)
    error = refusal(pickled, cache)
    assert (error.what, error.where) == (
        "holds more than tensors, or is damaged; it was not run",
        str(pickled / SINGLE),
    )


def test_a_compressed_file(pickled: Path, cache: Path) -> None:
    compressed(pickled / SINGLE)
    assert str(refusal(pickled, cache)) == f"{pickled / SINGLE}: is compressed, which torch.save never does"


def test_a_legacy_file_that_is_cut(tiny: Path, tensors: Tensors, tmp_path: Path, cache: Path) -> None:
    model = save(tiny, tensors, tmp_path / "pickled", _use_new_zipfile_serialization=False)
    size = (model / SINGLE).stat().st_size
    for length in (size - 1, size // 2, 100):
        os.truncate(model / SINGLE, length)
        assert refusal(model, cache).what == "holds more than tensors, or is damaged; it was not run"


def test_a_pointer_of_git_lfs(pickled: Path, cache: Path) -> None:
    (pickled / SINGLE).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32)
    assert refusal(pickled, cache).what == "is a Git LFS pointer, not the file itself"


def test_a_link_out(pickled: Path, tmp_path: Path, cache: Path) -> None:
    (pickled / SINGLE).rename(tmp_path / "elsewhere")
    (pickled / SINGLE).symlink_to("../elsewhere")
    assert refusal(pickled, cache).what == "is a symbolic link out of the checkpoint"


def test_a_pipe(pickled: Path, cache: Path) -> None:
    (pickled / SINGLE).unlink()
    os.mkfifo(pickled / SINGLE)
    assert refusal(pickled, cache).what == "is not a regular file, or a link to none"


# -- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x.bin", "/x.bin", "C:x.bin", "..\\x.bin", "x.safetensors", 3], ids=str)
def test_an_index_that_leads_outside(pickled: Path, tensors: Tensors, cache: Path, name: Any) -> None:
    index = json.loads((shard(pickled, tensors) / INDEX).read_bytes())
    index["weight_map"][HEAD] = name
    (pickled / INDEX).write_text(json.dumps(index))
    error = refusal(pickled, cache)
    assert (error.what, error.found) == (f"unsafe file name for tensor {HEAD!r}", ascii(name))
    assert error.expected == "a .bin file name without directories"


def test_a_missing_shard(pickled: Path, tensors: Tensors, cache: Path) -> None:
    (shard(pickled, tensors) / "pytorch_model-00002.bin").unlink()
    assert str(refusal(pickled, cache)) == (
        f"{pickled}: shards are missing; found 2 of 3, expected pytorch_model-00002.bin; the download is incomplete"
    )


def test_a_tensor_in_two_shards(pickled: Path, tensors: Tensors, cache: Path) -> None:
    home = json.loads((shard(pickled, tensors) / INDEX).read_bytes())["weight_map"][HEAD]
    path = pickled / next(name for name in ("pytorch_model-00001.bin", "pytorch_model-00002.bin") if name != home)
    torch.save({**torch.load(path), HEAD: tensors[HEAD]}, path)
    assert str(refusal(pickled, cache)) == f"{path}: the shard and {INDEX} do not name the same tensors; found {HEAD}"


def test_a_tensor_that_only_the_index_has(pickled: Path, tensors: Tensors, cache: Path) -> None:
    index = json.loads((shard(pickled, tensors) / INDEX).read_bytes())
    index["weight_map"]["model.extra.weight"] = "pytorch_model-00002.bin"
    (pickled / INDEX).write_text(json.dumps(index))
    assert str(refusal(pickled, cache)) == (
        f"{pickled / 'pytorch_model-00002.bin'}: the shard and {INDEX} do not name the same tensors; "
        "found model.extra.weight"
    )


def test_a_shard_that_is_a_program(pickled: Path, tensors: Tensors, tmp_path: Path, cache: Path) -> None:
    torch.save(attacks(tmp_path / "ran")["os.system"], shard(pickled, tensors) / "pytorch_model-00003.bin")
    assert refusal(pickled, cache).what == "holds more than tensors, or is damaged; it was not run"
    assert not (tmp_path / "ran").exists()


def test_a_single_file_beside_shards(pickled: Path, tensors: Tensors, cache: Path) -> None:
    single = (pickled / SINGLE).read_bytes()
    shard(pickled, tensors)
    (pickled / SINGLE).write_bytes(single)
    assert str(refusal(pickled, cache)) == (
        f"{pickled}: both {SINGLE} and {INDEX} are there, and readers differ in which they load; "
        "remove the one that is stale"
    )


# -- what is no weight ------------------------------------------------------------------------------------------------

STRANGE: dict[str, tuple[Callable[[], Any], str]] = {
    "a list": (lambda: [torch.zeros(3)], "is not a dictionary of tensors; found list"),
    "a tensor": (lambda: torch.zeros(3), "is not a dictionary of tensors; found Tensor"),
    "a number for a name": (lambda: {3: torch.zeros(3)}, "is not a dictionary of tensors; found a key 3"),
    "a number": (lambda: {"epoch": 3}, "'epoch' is not a tensor; found int"),
    "a training checkpoint": (
        lambda: {"model": {"x": torch.zeros(3)}, "step": 1},
        "'model' is not a tensor; found dict; a training checkpoint: save the state_dict of the model alone",
    ),
    "a path for a name": (lambda: {"../x": torch.zeros(3)}, "unsafe tensor name; found '../x'"),
    "control characters": (lambda: {"\x1b[2J\n": torch.zeros(3)}, "unsafe tensor name; found '\\x1b[2J\\n'"),
    "a long name": (
        lambda: {"n" * 9000: torch.zeros(3)},
        f"tensor name too long; found 9,000 characters, '{'n' * 40}' to begin with, expected at most 512",
    ),
    "meta": (lambda: {"x": torch.zeros(3, device="meta")}, "tensor 'x' is not a plain one; found device meta"),
    "sparse": (lambda: {"x": torch.eye(3).to_sparse()}, "tensor 'x' is not a plain one; found torch.sparse_coo"),
    "complex": (
        lambda: {"x": torch.zeros(3, dtype=torch.complex128)},
        "tensor 'x' is not a plain one; found torch.complex128",
    ),
    "far larger than the file": (
        lambda: {"x": torch.zeros(1).expand(10**6, 10**6)},
        "the tensors are far larger than the file; found 4,000,000,000,000 bytes in ...",
    ),
    "one storage many times": (
        lambda: dict.fromkeys(map(str, range(10_000)), torch.zeros(10**6)),
        "the tensors are far larger than the file; found 40,000,000,000 bytes in ...",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_weight_is_refused(pickled: Path, cache: Path, name: str) -> None:
    make, message = STRANGE[name]
    torch.save(make(), pickled / SINGLE)
    found = str(refusal(pickled, cache)).removeprefix(f"{pickled / SINGLE}: ")
    assert found.startswith(message.removesuffix("...")) if message.endswith("...") else found == message, found
