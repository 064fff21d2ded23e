"""Small random models of every variant, and the real SmolLM2-135M."""

import argparse
import json
import os
import struct

# Before any library that reads them is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("UPCYCLE_CACHE", "build/cache")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # here and in every child, so that all sum in the same order

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.assets import fetch
from tests.hub.client import Client
from tests.hub.server import Hub, serving
from tests.models import VARIANTS, save_dense
from upcycle.pipeline.locate import locate

ROOT = Path(__file__).parent.parent

# `make test &` and nohup start it with Ctrl-C ignored, which every child would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("repeatable", derandomize=True)  # the same examples in every run
settings.load_profile("repeatable")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub on loopback."""
    with serving(tmp_path / "cas") as running:
        yield running


@pytest.fixture
def no_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `verify` start no process that imports transformers, which takes seconds and is tested in test_verify."""
    from upcycle.convert import plain

    monkeypatch.setattr(plain, "report_plain", lambda *_: None)


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    """A user of that Hub with an empty cache."""
    return Client(hub, tmp_path / "home")


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Return a function: a name and what fills a directory -> that directory, which all worker processes share.

    The first worker that asks makes it; the others wait. Nobody may change what is in it.
    """
    place = tmp_path_factory.getbasetemp()
    shared = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place  # each worker has a directory in it

    def get(name: str, make: Callable[[Path], object]) -> Path:
        directory, complete = shared / f"once-{name}", shared / f"once-{name}.complete"
        with FileLock(shared / f"once-{name}.lock"):
            if not complete.exists():
                directory.mkdir()
                make(directory)
                complete.touch()
        return directory

    return get


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function: name of a variant -> directory of a small random dense checkpoint (made once)."""
    made: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in made:
            made[variant] = save_dense(variant, tmp_path_factory.mktemp(variant))
        return made[variant]

    return get


@pytest.fixture(params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest, dense: Callable[[str], Path]) -> Path:
    """The directory of each variant in turn."""
    return dense(request.param)


@pytest.fixture(scope="session")
def tiny(dense: Callable[[str], Path]) -> Path:
    """A plain llama of 2 layers, 32 wide, in bfloat16."""
    return dense("llama")


@pytest.fixture(scope="session")
def smollm2(once: Once) -> Path:
    """The real SmolLM2-135M-Instruct as a dequantised checkpoint directory, made by the command line."""
    target = ROOT / "build/assets/SmolLM2-135M-Instruct.gguf"

    def dequantise(_: Path) -> None:
        # In a process of its own: the GGUF reader leaves files open, which is an error here.
        command = [sys.executable, "-m", "upcycle.cli", "plan", str(fetch(target))]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    once("smollm2", dequantise)
    return locate(str(target))


@pytest.fixture(scope="session")
def moe(once: Once) -> Path:
    """The built-in llama with four experts, routers drawn wide enough that their gradients differ."""
    made = once("moe", lambda place: run_convert(Path("demo:tiny"), place / "moe", router_std=0.1, noise=0.1))
    return made / "moe"


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real text, 100 kB: a module of the standard library."""
    path = tmp_path_factory.mktemp("text") / "argparse.txt"
    path.write_bytes(Path(argparse.__file__).read_bytes())
    return path


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Return a function that copies a checkpoint directory to where a test may damage it."""
    import shutil

    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(directory, tmp_path / "damaged"))

    return copy


def request_fields(**fields: Any) -> dict[str, Any]:
    """The fields of a small conversion, with some replaced."""
    return {"experts": 4, "top_k": 2, **fields}


def run_convert(model: Path, out: Path, **fields: Any) -> Path:
    """Convert `model` as a small request, with some fields replaced; return `out`."""
    from upcycle.pipeline.stages import convert
    from upcycle.requests import Convert

    convert(Convert(model=str(model), out=str(out), **request_fields(**fields)))
    return out


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` with its bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def raw_safetensors(path: Path, header: bytes | Mapping[str, Any], data: bytes = b"") -> Path:
    """Write a safetensors file whose header may be nonsense."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def edit_json(path: Path, **changes: Any) -> Path:
    """Replace fields of a JSON object on disk; a field set to `...` is removed. Return `path`."""
    value = {**json.loads(path.read_bytes()), **changes}
    path.write_text(json.dumps({name: item for name, item in value.items() if item is not ...}))
    return path
