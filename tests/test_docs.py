"""The README and docs/ are true: commands and options exist, outputs are real, code runs, links and files are there.

A block marked `sh` runs as it stands, on `demo:tiny` and a text `book.txt`: the slow test does so. One marked `bash`
needs the Hub, a GPU or another model, and is only parsed.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import yaml

from benchmarks.models import MISTRAL_7B, write_sparse
from tests import families_table, house_layout
from upcycle.cli.main import group
from upcycle.pipeline.steps import read_recipe

ROOT = Path(__file__).parent.parent
GUIDES = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "cli.md")  # it is generated
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{name}" for name in GUIDES))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^    (upcycle [a-z].*)$", re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
OPTION = re.compile(r"(?<!\S)--[a-z][\w-]*")


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page that are marked with this language."""
    return [block for marked, block in FENCE.findall(text(page)) if marked == language]


def command_lines(page: str, *languages: str) -> list[str]:
    """The lines of such blocks that call upcycle; a line that ends in a backslash goes on in the next."""
    lines = [line for language in languages for block in blocks(page, language) for line in _joined(block).splitlines()]
    return [line for line in lines if line.startswith("upcycle ")]


def spans(page: str) -> Iterator[str]:
    """What stands between backticks within sentences."""
    return (" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text(page))))


def _joined(block: str) -> str:
    return re.sub(r"\\\n\s*", "", block)


@cache
def command(name: str) -> click.Command:
    found = group.get_command(click.Context(group), name)
    assert found is not None, f"upcycle has no command {name}"
    return found


@cache
def options(name: str) -> frozenset[str]:
    return frozenset(opt for each in command(name).params for opt in (*each.opts, *each.secondary_opts)) | {"--help"}


NAMES = tuple(group.list_commands(click.Context(group)))
ALL_OPTIONS = frozenset[str]().union(*map(options, NAMES)) | {"--debug", "--version"}

# -- commands ---------------------------------------------------------------------------------------------------------

LINES = [
    pytest.param(line, id=f"{page}: {line}")
    for page in PAGES
    for line in (*command_lines(page, "sh", "bash"), *INDENTED.findall(_joined(FENCE.sub("", text(page)))))
]


@pytest.mark.parametrize("line", LINES)
def test_commands_are_accepted(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "--debug":
        del words[0]
    name, *arguments = words
    parsed = command(name).make_context(name, arguments, parent=click.Context(group))  # raises where one is unknown
    if name == "run" and parsed.params.get("recipe"):
        assert (ROOT / "recipes" / f"{parsed.params['recipe']}.yaml").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_in_sentences_exist(page: str) -> None:
    wrong = []
    for span in spans(page):
        words = span.removeprefix("upcycle ").split()
        if span.startswith("--"):
            known = ALL_OPTIONS
        elif words[0] in NAMES:
            known = options(words[0])
        elif span.startswith("upcycle "):
            known = frozenset(("--help", "--version")) & set(words)  # such as `upcycle --help`
            wrong += [] if known else [span]
        else:
            continue  # a file, a value, another program
        wrong += [option for option in OPTION.findall(span) if option not in known]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page, "sh")])
def test_what_can_run_here_runs(page: str, tmp_path: Path) -> None:
    book = [path.read_text(encoding="utf-8") for path in (ROOT / "LICENSE", *sorted(ROOT.glob("docs/*.md")))]
    (tmp_path / "book.txt").write_text("\n".join(book), encoding="utf-8")
    said = {line: upcycle(*shlex.split(line)[1:], directory=tmp_path) for line in command_lines(page, "sh")}
    if page == "README.md":
        (verified,) = (said[line] for line in said if line.startswith("upcycle verify"))
        shown = next(block for block in blocks(page, "text") if block.endswith("verified\n"))
        assert set(without_numbers(shown)) <= set(without_numbers(verified))


def upcycle(*arguments: str, directory: Path) -> str:
    """What a command prints; it must succeed."""
    call = [sys.executable, "-m", "upcycle.cli", *arguments]
    done = subprocess.run(call, cwd=directory, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def without_numbers(output: str) -> list[str]:
    """The lines of an output; figures of a computation differ from machine to machine."""
    return [re.sub(r"\d[\d.,e+-]*", "#", line) for line in output.splitlines()]


# -- outputs ----------------------------------------------------------------------------------------------------------


def test_the_plan_of_the_readme_is_what_upcycle_prints(tmp_path: Path) -> None:
    write_sparse(tmp_path / "mistral", MISTRAL_7B)
    assert upcycle("plan", "mistral", "--experts", "8", "--top-k", "2", directory=tmp_path) in blocks(
        "README.md", "text"
    )


def test_the_plan_of_the_guide_is_what_upcycle_prints(tmp_path: Path) -> None:
    (line,) = (line for line in command_lines("docs/convert.md", "sh") if line.startswith("upcycle plan"))
    assert upcycle(*shlex.split(line)[1:], directory=tmp_path) in blocks("docs/convert.md", "text")


@pytest.mark.parametrize("page", ["README.md", "docs/families.md"])
def test_the_tables_of_families_are_current(page: str) -> None:
    made = families_table.without_figures(families_table.page(page))
    assert families_table.without_figures(text(page)) == made, "run `make docs`"


def test_the_house_is_current() -> None:
    assert text("docs/house.md") == house_layout.page(), "run `make docs`"


# -- code and recipes -------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """What is run before and after a page's Python, in one process, and what all of it prints."""

    before: str
    after: str
    prints: str


PYTHON = {
    "README.md": Example("", "", "True\n"),
    "docs/adapters.md": Example(
        "from upcycle import Attach, run; run(Attach(model='demo:tiny', out='adapter-trained'))",
        "print('upcycle_router' in str(model))",
        "True\n",
    ),
    "docs/convert.md": Example(
        "from upcycle import Convert, run; run(Convert(model='demo:tiny', out='moe'))",
        "",
        "MixtralForCausalLM torch.Size([1, 2, 2048])\n",
    ),
    "docs/recipes.md": Example("", "", "4789376 parameters\n--top-k 1 -> --top-k 2 or more\n"),
}


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize(
    "page", [page if page == "README.md" else pytest.param(page, marks=pytest.mark.slow) for page in WITH_PYTHON]
)
def test_the_python_runs(page: str, tmp_path: Path) -> None:
    example = PYTHON.get(page, Example("", "", ""))
    code = "\n".join([example.before, *blocks(page, "python"), example.after])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, example.prints), done.stderr


RECIPES = [(page, number) for page in PAGES for number in range(len(blocks(page, "yaml")))]


@pytest.mark.parametrize(("page", "number"), RECIPES)
def test_the_recipes_are_sound(page: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(blocks(page, "yaml")[number], encoding="utf-8")
    assert read_recipe(tmp_path / "recipe.yaml").steps


def test_every_packaged_recipe_is_in_the_guide() -> None:
    rows = [line.partition(" | ")[0] for line in text("docs/recipes.md").splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in SPAN.findall(row)}
    assert listed == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


# -- links, targets, files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", FENCE.sub("", text(page)))
    assert [target for target in targets if "://" not in target and not _is_there(page, target)] == []


def _is_there(page: str, target: str) -> bool:
    name, _, heading = target.partition("#")
    path = (ROOT / page).parent / name if name else ROOT / page
    return path.exists() and (not heading or heading in _anchors(path))


def _anchors(path: Path) -> set[str]:
    """The names that headings are linked by: small letters, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = set[str](), {"README.md"}
    while new:
        reached |= new
        new = {link for page in new for link in _pages_from(page)} - reached
    assert {*PAGES, "docs/cli.md"} <= reached


def _pages_from(page: str) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)#]+\.md)[^)]*\)", text(page)):
        if "://" not in target:
            yield ((ROOT / page).parent / target).resolve().relative_to(ROOT.resolve()).as_posix()


def test_the_files_that_an_addition_touches_are_there() -> None:
    paths = {span for span in spans("docs/adding.md") if re.fullmatch(r"(upcycle|tests)/[\w/.]+", span)}
    assert paths
    assert [path for path in paths if not list(ROOT.glob(path.replace("NAME", "*")))] == []


TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    code = [*spans(page), *(line for _, block in FENCE.findall(text(page)) for line in block.splitlines())]
    named = {target for line in code for target in re.findall(r"^make ([a-z-]+)", line)}
    assert named <= TARGETS
    assert page != "README.md" or named >= {"demo", "test", "bench"}


def test_ci_runs_the_test_command_of_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in spans("README.md")
    assert ci.index("make lint") < ci.index("make test")


def test_the_public_workflow_calls_make_targets() -> None:
    jobs = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"]
    calls = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {call.removeprefix("make ") for call in calls} == {"lint", "test", "test-slow"} <= TARGETS


def test_the_hooks_call_what_make_lint_calls() -> None:
    (local,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    tools = [Path(hook["entry"].split()[0]).name for hook in local["hooks"]]
    assert tools == ["ruff", "ruff", "mypy"]
    assert all(f"$(BIN)/{tool}" in text("Makefile") for tool in tools)


def test_the_image_is_made_of_files_that_are_here() -> None:
    copied = re.findall(r"^COPY (.*) \S+$", text("Dockerfile"), re.MULTILINE)
    assert copied
    assert [name for names in copied for name in names.split() if not (ROOT / name).exists()] == []
