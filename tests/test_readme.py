"""The README is true: its commands are accepted, its Python runs, its layout lists every file, its links exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.readme_layout import layout
from upcycle.cli.main import group
from upcycle.pipeline.steps import read_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

COMMANDS = re.findall(r"^ +(upcycle [a-z].*)$", README, re.MULTILINE)


def test_the_layout_is_current() -> None:
    assert layout() in README, "run `python -m tests.readme_layout`"


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_accepted(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = group.commands.get(name) or group.get_command(click.Context(group), name)
    assert command is not None, name
    command.make_context(name, words, parent=click.Context(group))  # raises for an unknown option or argument


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert targets >= {"demo", "test", "lint", "bench"}
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_the_python_runs(tmp_path: Path) -> None:
    converting, adapter = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert _python(converting, tmp_path) == "True\n"
    _python("from upcycle import Attach, run; run(Attach(model='demo:tiny', out='adapter-trained'))", tmp_path)
    assert "upcycle_router" in _python(f"{adapter}\nprint(model)", tmp_path)


def _python(code: str, directory: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_recipes_are_sound(tmp_path: Path) -> None:
    steps = []
    for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL):
        (tmp_path / "recipe.yaml").write_text(block)
        steps.append([type(step).__name__ for step in read_recipe(tmp_path / "recipe.yaml").steps])
    assert steps == [["Convert", "Verify", "Generate"], ["Convert", "Train", "Generate"]]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "    make test" in README.splitlines()
    assert ci.index("make lint") < ci.index("make test")
