"""Damaged and dishonest checkpoints: every known kind, what the command line says of it, and that it does nothing."""

import json
import math
import re
import signal
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import raw_safetensors
from tests.damage import (
    INDEX,
    LLAMA,
    NORM,
    SHARDS,
    TOKENIZER,
    UP,
    WEIGHTS,
    Case,
    Damage,
    Run,
    all_of,
    fields,
    lay_out,
    tensors,
    write,
)
from tests.hostile_cases import SHARDED, SINGLE
from tests.models import save_header
from upcycle.checkpoint.header import read_header

SCREEN = 80 * 24 - 20
"""Characters: a message is read at a glance."""

# -- the sound models -------------------------------------------------------------------------------------------------


def split(model: Path) -> None:
    """Make three shards of the one file."""
    specs = read_header(model / WEIGHTS).tensors
    (model / WEIGHTS).unlink()
    groups: list[list[str]] = [[], [], []]
    for name in specs:
        groups[1 if ".layers.0." in name else 2 if ".layers.1." in name or name == NORM else 0].append(name)
    for shard, names in zip(SHARDS, groups, strict=True):
        lay_out(model / shard, {name: (specs[name].dtype, specs[name].shape) for name in names})
    weight_map = {name: shard for shard, names in zip(SHARDS, groups, strict=True) for name in names}
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sound llama of 2 layers, 32 wide, in one file."""
    directory = tmp_path / "model"
    directory.mkdir()
    save_header(LLAMA, directory)
    (directory / TOKENIZER).write_text('{"version": "1.0"}')
    return directory


@pytest.fixture
def sharded(model: Path) -> Path:
    """The same in three shards."""
    split(model)
    return model


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def upcycle(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line in this process and returns its exit code and stderr."""
    from upcycle.cli.main import main

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["upcycle", *map(str, words)])
        heard = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        finally:
            signal.signal(signal.SIGTERM, heard)
        return int(caught.value.code or 0), capsys.readouterr().err

    return run


def settled(message: str, base: Path) -> str:
    """The message without what differs between machines, and with `x*99` for a long row of the same character."""
    placed = message.replace(str(base / "model"), "MODEL").replace(str(base), "BASE")
    return re.sub(r"(.)\1{20,}", lambda row: f"{row[1]}*{len(row[0])}", placed)


def state(directory: Path) -> dict[str, Any]:
    """What would show that a file was touched: kind, size, time of the last change, target of a link."""
    found = {}
    for path in sorted(directory.rglob("*")):
        facts = path.lstat()
        found[path.name] = (facts.st_mode, facts.st_size, facts.st_mtime_ns, path.is_symlink() and path.readlink())
    return found


def refused(run: Run, *words: object, base: Path) -> str:
    """Run a command that must be refused without a trace; return its message."""
    before = state(base)
    code, said = run(*words)
    assert code == 2, said
    assert said.startswith("upcycle: error: ")
    assert said.endswith("\n")
    assert said[:-1].isprintable(), "a control character, or a second line"
    assert len(said) < SCREEN
    assert state(base) == before, "something was written"
    return settled(said, base).removeprefix("upcycle: error: ").removesuffix("\n")


def agrees(message: str, pinned: str) -> bool:
    """Whether a message is the pinned one, in which `...` stands for what Python or the machine says."""
    return re.fullmatch(re.escape(pinned).replace(r"\.\.\.", ".*"), message) is not None


def check(case: Case, run: Run, base: Path) -> None:
    case.damage(base / "model")
    message = refused(run, "convert", base / "model", base / "out", "--experts", 4, base=base)
    assert agrees(message, case.message), f"{message}\nis not\n{case.message}"
    assert refused(run, "plan", base / "model", "--experts", 4, base=base) == message


@pytest.mark.parametrize("name", SINGLE)
def test_a_damaged_model_is_refused(name: str, model: Path, upcycle: Run) -> None:
    check(SINGLE[name], upcycle, model.parent)


@pytest.mark.parametrize("name", SHARDED)
def test_a_damaged_model_in_shards_is_refused(name: str, sharded: Path, upcycle: Run) -> None:
    check(SHARDED[name], upcycle, sharded.parent)


@pytest.mark.parametrize("name", ["truncated", "pipe, weights", "GPTQ", "deep JSON, config"])
def test_a_process_of_its_own_says_the_same(name: str, model: Path) -> None:
    """A pipe cannot hang it, and nothing but the message is printed."""

    def run(*words: object) -> tuple[int, str]:
        command = [sys.executable, "-m", "upcycle.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.stdout == ""
        return done.returncode, done.stderr

    check(SINGLE[name], run, model.parent)


# -- what only looks odd ----------------------------------------------------------------------------------------------


def directory_link(model: Path) -> None:
    model.rename(model.with_name("elsewhere"))
    model.symlink_to("elsewhere")


def hub_cache(model: Path) -> None:
    """As huggingface_hub lays it out: a snapshot of links to blobs beside it."""
    entry = model.with_name("models--org--name")
    snapshot = entry / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    model.rename(entry / "blobs")
    for number, blob in enumerate(sorted((entry / "blobs").iterdir())):
        named = blob.rename(blob.with_name(f"{number:064x}"))
        (snapshot / blob.name).symlink_to(f"../../blobs/{named.name}")
    model.symlink_to(snapshot)


def link_inside(model: Path) -> None:
    (model / WEIGHTS).rename(model / "kept")
    (model / WEIGHTS).symlink_to("kept")


ODD: dict[str, Damage] = {
    "nothing odd": lambda _: None,
    "the directory is a link": directory_link,
    "the Hub's cache": hub_cache,
    "a link inside": link_inside,
    "an index of one file": lambda m: (m / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(read_header(m / WEIGHTS).tensors, WEIGHTS)})
    ),
    "no head, and the config says so": all_of(
        tensors(lambda t: t.pop("lm_head.weight")), fields(tie_word_embeddings=True)
    ),
    "a head, though the config says it is tied": fields(tie_word_embeddings=True),
    "buffers that old programs wrote": tensors(
        lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (4,))})
    ),
    "a pickle beside": write("pytorch_model.bin", b"\x80"),
    "spaces after the header": lambda m: raw_safetensors(m / WEIGHTS, *padded((m / WEIGHTS).read_bytes())),
    "head_dim is null": fields(head_dim=None),
}


def padded(data: bytes) -> tuple[bytes, bytes]:
    start = 8 + struct.unpack("<Q", data[:8])[0]
    return data[8:start] + b" \n\t\r" * 99, data[start:]


@pytest.mark.parametrize("name", ODD)
def test_what_only_looks_odd_is_converted(name: str, model: Path, upcycle: Run) -> None:
    ODD[name](model)
    code, said = upcycle("convert", model, model.parent / "out", "--experts", 2)
    assert (code, said) == (0, "")
    assert upcycle("verify", model, model.parent / "out", "--tensors-only") == (0, "")


# -- absurd counts ----------------------------------------------------------------------------------------------------

BROAD = {**LLAMA, "hidden_size": 2**15, "intermediate_size": 2**20, "num_attention_heads": 2**8, "head_dim": 2**7}
"""2 layers of 3 matrices of 2^35 values: 412 GB in bfloat16, as a hole in a sparse file."""


@pytest.mark.parametrize(
    ("layers", "experts", "found"),
    [
        # 3 matrices for every expert, a router and 6 others in every layer, and 3 beside the layers
        (40, 65536, "7,864,603 for 65,536 experts in each of 40 layers"),
        (400, 833, "1,002,403 for 833 experts in each of 400 layers"),
    ],
)
def test_more_tensors_than_a_reader_takes(layers: int, experts: int, found: str, tmp_path: Path, upcycle: Run) -> None:
    (tmp_path / "model").mkdir()
    save_header({**LLAMA, "num_hidden_layers": layers}, tmp_path / "model")
    for words in (("plan", tmp_path / "model"), ("convert", tmp_path / "model", tmp_path / "out")):
        tracemalloc.start()
        message = refused(upcycle, *words, "--experts", experts, base=tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert message == f"too many tensors; found {found}, expected at most 1,000,000; fewer --experts"
        assert peak < 50e6, "the plan was made before it was refused"


def test_more_experts_than_anyone_has(model: Path, upcycle: Run) -> None:
    message = refused(upcycle, "convert", model, model.parent / "out", "--experts", 65537, base=model.parent)
    assert message == "experts is out of range; found 65537, expected 1 to 65536; set it with --experts"


def test_more_bytes_than_the_disk_has(tmp_path: Path, upcycle: Run) -> None:
    """In float32, so that no block can be shared: 1,024 experts of 824 GB each."""
    (tmp_path / "model").mkdir()
    save_header(BROAD, tmp_path / "model")
    words = ("convert", tmp_path / "model", tmp_path / "out", "--experts", 1024, "--dtype", "f32")
    message = refused(upcycle, *words, base=tmp_path)
    pinned = (
        "BASE: no space for such an output; found a disk of ... GB, expected 844,442.54 GB; fewer --experts, or ..."
    )
    assert agrees(message, pinned), message


# -- NaN and infinity -------------------------------------------------------------------------------------------------

EMBEDDINGS = "model.embed_tokens.weight"


class Wrong(NamedTuple):
    """A value in the weights, and what --check-finite says of it."""

    dtype: torch.dtype
    tensor: str
    place: tuple[int, ...]
    value: float
    found: str


WRONG = {
    "expert": Wrong(torch.bfloat16, UP, (3, 5), math.nan, "NaN at [3, 5]"),
    "embedding": Wrong(torch.bfloat16, EMBEDDINGS, (0, 0), math.inf, "Inf at [0, 0]"),
    "norm": Wrong(torch.bfloat16, NORM, (7,), -math.inf, "-Inf at [7]"),
    "last element": Wrong(torch.bfloat16, EMBEDDINGS, (95, 31), math.nan, "NaN at [95, 31]"),
    "float16": Wrong(torch.float16, UP, (47, 31), math.inf, "Inf at [47, 31]"),
    "float32": Wrong(torch.float32, "lm_head.weight", (1, 2), math.nan, "NaN at [1, 2]"),
    "float32, minus infinity": Wrong(torch.float32, NORM, (31,), -math.inf, "-Inf at [31]"),
}


def spoil(model: Path, *wrongs: Wrong) -> None:
    """Fill the model with numbers, the largest and the smallest of the dtype too, and put the wrong ones in."""
    dtype = wrongs[0].dtype
    values = {name: torch.randn(spec.shape).to(dtype) for name, spec in read_header(model / WEIGHTS).tensors.items()}
    limits = torch.finfo(dtype)
    for value in values.values():
        value.view(-1)[:4] = torch.tensor([limits.max, limits.min, limits.smallest_normal / 2, -0.0], dtype=dtype)
    for wrong in wrongs:
        values[wrong.tensor][wrong.place] = wrong.value
    save_file(values, model / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_is_not_finite_is_named(name: str, model: Path, upcycle: Run) -> None:
    wrong, out = WRONG[name], model.parent / "out"
    spoil(model, wrong)
    pinned = (
        f"MODEL/{WEIGHTS}: tensor {wrong.tensor!r} is not finite; found {wrong.found}; "
        "without --check-finite it is copied as it is"
    )
    for words in ((), ("--dry-run",), ("--workers", 1, "--noise", 0.1)):
        assert refused(upcycle, "convert", model, out, "--check-finite", *words, base=model.parent) == pinned
    assert upcycle("convert", model, out, "--experts", 2) == (0, "")


def test_finite_extremes_pass(model: Path, upcycle: Run) -> None:
    spoil(model, WRONG["expert"]._replace(value=0.0))
    assert upcycle("convert", model, model.parent / "out", "--experts", 2, "--check-finite") == (0, "")


def test_of_several_the_first_is_named(model: Path, upcycle: Run) -> None:
    """In the order of the file, where they are looked at one after the other."""
    first = Wrong(torch.bfloat16, UP, (3, 5), math.nan, "NaN at [3, 5]")
    spoil(model, first, first._replace(place=(40, 0)), first._replace(tensor=NORM, place=(0,)))
    words = ("convert", model, model.parent / "out", "--check-finite")
    message = refused(upcycle, *words, "--dry-run", base=model.parent)
    assert f"tensor {UP!r} is not finite; found NaN at [3, 5]" in message
    message = refused(upcycle, *words, base=model.parent)
    assert (
        f"{UP!r} is not finite; found NaN at [3, 5]" in message
        or f"{NORM!r} is not finite; found NaN at [0]" in message
    )


def test_a_value_that_is_not_finite_in_a_shard(sharded: Path, upcycle: Run) -> None:
    data = bytearray((sharded / SHARDS[2]).read_bytes())
    data[-2:] = struct.pack("<H", 0xFF80)  # bfloat16: sign, all of the exponent, no mantissa
    (sharded / SHARDS[2]).write_bytes(data)
    words = ("convert", sharded, sharded.parent / "out", "--check-finite")
    message = refused(upcycle, *words, base=sharded.parent)
    assert message.startswith(f"MODEL/{SHARDS[2]}: tensor '{NORM}' is not finite; found -Inf at [31]; ")
