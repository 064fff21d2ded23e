"""The layout in the README, one line per file, from docstrings: `python -m tests.readme_layout` puts it there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

ROOMS = (
    "cli", "pipeline", "convert", "adapt", "train", "analyze", "use", "hub", "card", "build", "foreign", "adapters",
    "moe", "text", "plan", "families", "checkpoint", "requests", ".",
)  # fmt: skip
"""The packages of `upcycle`, top to bottom: imports point down only."""

BESIDE = """\
recipes/                 recipes, packaged with upcycle, and their JSON Schema
tests/                   behaviour, on small random models and the real SmolLM2-135M
benchmarks/              `make bench` and its figures
docs/                    cli.md, generated from the commands; experiments.md, what was tried
tools/                   train_tiny.py, which made demo:tiny"""


def layout() -> str:
    """Return the layout as text."""
    lines: list[str] = []
    for room in ROOMS:
        directory = ROOT / "upcycle" / room
        if room != ".":
            lines.append(f"upcycle/{room}/".ljust(25) + _summary(directory / "__init__.py"))
        for path in sorted(directory.glob("*.py")):
            if path.name not in ("__init__.py", "__main__.py"):
                name = f"  {path.name}" if room != "." else f"upcycle/{path.name}"
                lines.append(name.ljust(25) + _summary(path))
    return "\n".join([*lines, BESIDE])


def _summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ").partition(". ")[0].rstrip(".")


if __name__ == "__main__":
    readme = ROOT / "README.md"
    block = re.compile(r"(?<=^```\n)upcycle/cli/.*?(?=\n```)", re.DOTALL | re.MULTILINE)
    readme.write_text(block.sub(lambda _: layout(), readme.read_text(encoding="utf-8")), encoding="utf-8")
