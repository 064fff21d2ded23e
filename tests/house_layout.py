"""Writes the layers and the list of files in docs/house.md: `python -m tests.house_layout`.

The layers are the import contracts of pyproject.toml; a file's line is the first sentence of its docstring. What stands
outside the marked blocks is written by hand.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "house.md"
CLOSING = "<!-- end -->"

BESIDE = """\
### Beside the package

- `recipes/`: recipes, packaged with upcycle, and their JSON Schema
- `tests/`: behaviour, on small random models and the real SmolLM2-135M
- `benchmarks/`: `make bench` and its figures
- `docs/`: guides; `cli.md` is generated from the commands, `experiments.md` keeps what was tried
- `tools/`: `train_tiny.py`, which made `demo:tiny`"""


def page() -> str:
    """Return docs/house.md with its marked blocks brought up to date."""
    text = PAGE.read_text(encoding="utf-8")
    for name, made in (("layers", layers()), ("files", files())):
        opening = f"<!-- {name}: made by make docs -->\n"
        before, after = text.split(opening)
        text = f"{before}{opening}\n{made}\n\n{after[after.index(CLOSING) :]}"
    return text


def layers() -> str:
    """Return the import contracts: a line for each layer, the highest first, and a line for each ban."""
    lines = ["```text", *("    ".join(_rooms(layer)) for layer in _contract("layers")[0]["layers"]), "```", ""]
    for ban in _contract("forbidden"):
        rooms = ", ".join(f"`{room.removeprefix('upcycle.')}`" for room in ban["source_modules"])
        banned = ", ".join(f"`{module}`" for module in ban["forbidden_modules"])
        lines.append(f"- {ban['name'][0].upper()}{ban['name'][1:]}: {banned} cannot be imported by {rooms}.")
    return "\n".join(lines)


def files() -> str:
    """Return a section for each room, in the order of the layers, and a line for each file."""
    rooms = [room for layer in _contract("layers")[0]["layers"] for room in _rooms(layer)]
    sections = [_section(ROOT / "upcycle" / room) for room in rooms]
    return "\n\n".join(["\n".join(section) for section in sections] + [BESIDE])


def _contract(kind: str) -> list[dict[str, Any]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    return [contract for contract in contracts if contract["type"] == kind]


def _rooms(layer: str) -> list[str]:
    """The rooms of a layer, as import-linter writes it: `(adapt) | convert` are two that do not import each other."""
    return re.findall(r"\w+", layer)


def _section(room: Path) -> Iterator[str]:
    """A room and its files; of a room inside it, the same below."""
    if not room.is_dir():
        yield f"### `{_name(room)}.py`\n\n{_summary(room.with_suffix('.py'))}."
        return
    yield f"### `{_name(room)}/`\n\n{_summary(room / '__init__.py')}.\n"
    for path in sorted(room.glob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            yield f"- `{path.name}`: {_summary(path)}"
    for inner in sorted(path.parent for path in room.glob("*/__init__.py")):
        yield ""
        yield from _section(inner)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, f"{path} does not say what is in it"
    return text.partition("\n\n")[0].replace("\n", " ").partition(". ")[0].rstrip(".")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
