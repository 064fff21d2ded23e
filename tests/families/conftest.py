"""Random models of the pairs, each saved once for all tests of this folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families.models import MODELS, save_model


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function: name of a model -> its directory, which no test changes."""
    found: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in found:
            found[name] = save_model(name, MODELS[name], tmp_path_factory.mktemp(name) / name)
        return found[name]

    return get
