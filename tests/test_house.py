"""The checks of `make lint` really catch what they are there for: each planted fault fails them."""

import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PLANTED = {
    "upward import": ("upcycle/plan/plan.py", "from upcycle.convert import verify", "lint-imports"),
    "wing to wing": ("upcycle/hub/client.py", "from upcycle.convert import verify", "lint-imports"),
    "hub to card": ("upcycle/hub/push.py", "from upcycle.card import missing", "lint-imports"),
    "torch in checkpoint": ("upcycle/checkpoint/header.py", "import torch", "ruff"),
    "torch reached from families": ("upcycle/families/match.py", "import torch", "lint-imports"),
    "network outside hub": ("upcycle/build/builder.py", "import huggingface_hub", "lint-imports"),
    "accelerate outside train.parallel": ("upcycle/train/loop.py", "import accelerate", "lint-imports"),
    "processes outside train.parallel": ("upcycle/train/loop.py", "from torch import distributed", "ruff"),
    "click outside cli": ("upcycle/pipeline/stages.py", "import click", "lint-imports"),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "upcycle", root / "upcycle", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def passes(gate: str, root: Path) -> bool:
    tool = Path(sys.executable).parent / gate
    arguments = ["check", "--select", "TID251,TID253", "upcycle"] if gate == "ruff" else ["--no-cache"]
    return subprocess.run([tool, *arguments], cwd=root, capture_output=True).returncode == 0


@pytest.mark.parametrize("gate", ["ruff", "lint-imports"])
def test_the_house_is_in_order(copy: Path, gate: str) -> None:
    assert passes(gate, copy)


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_fails(copy: Path, fault: str) -> None:
    name, line, gate = PLANTED[fault]
    path = copy / name
    before = path.read_text()
    try:
        path.write_text(f"{before}\n{line}\n")
        assert not passes(gate, copy)
    finally:
        path.write_text(before)


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """pytest leaves out folders called `build` unless it is told otherwise."""
    patterns = pytestconfig.getini("norecursedirs")
    folders = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert {"build", "families"} <= folders
    assert not [name for name in folders if any(fnmatch(name, pattern) for pattern in patterns)]
