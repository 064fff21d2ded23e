"""`make test-lowest` tests what pyproject.toml promises: the pins it installs are the lower bounds that are stated."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
AT_THE_BOUND = (
    "accelerate", "click", "datasets", "huggingface-hub", "matplotlib", "peft", "pyarrow", "safetensors",
    "transformers",
)  # fmt: skip


def pins(file: str) -> dict[str, Version]:
    """Return name -> version of a constraints file in which every line is one exact version."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    assert all(len(one.specifier) == 1 and str(one.specifier).startswith("==") for one in requirements), file
    return {canonicalize_name(one.name): Version(str(one.specifier)[2:]) for one in requirements}


def lower_bounds() -> dict[str, Version]:
    """Return name -> version of what pyproject.toml asks for with `>=`, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in groups for text in group]
    return {
        canonicalize_name(one.name): Version(bound.version)
        for one in requirements
        for bound in one.specifier
        if bound.operator == ">="
    }


def test_every_pin_is_accounted_for() -> None:
    assert sorted(pins("constraints-lowest.txt")) == sorted([*AT_THE_BOUND, "torch"])


@pytest.mark.parametrize("name", AT_THE_BOUND)
def test_the_pin_is_the_lower_bound(name: str) -> None:
    assert pins("constraints-lowest.txt")[name] == lower_bounds()[name]


def test_torch_is_the_one_that_upcycle_is_developed_on() -> None:
    assert pins("constraints-lowest.txt")["torch"] == pins("constraints.txt")["torch"] >= lower_bounds()["torch"]


def test_what_is_developed_on_lies_within_the_bounds() -> None:
    developed = pins("constraints.txt")
    assert {
        name: bound for name, bound in lower_bounds().items() if name in developed and developed[name] < bound
    } == {}
