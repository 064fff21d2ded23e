"""Small random models of every variant, and the real SmolLM2-135M."""

import os

# Before any library that reads them is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("UPCYCLE_CACHE", "build/cache")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.assets import fetch
from tests.models import VARIANTS, save_dense

ROOT = Path(__file__).parent.parent


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
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct as a dequantised checkpoint directory."""
    from upcycle.pipeline.stages import locate

    return locate(str(fetch(ROOT / "build/assets/SmolLM2-135M-Instruct.gguf")))


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
