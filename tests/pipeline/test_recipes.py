"""Recipes: what they may say, what is refused and how, how steps link, and the packaged ones."""

import json
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from upcycle import requests
from upcycle.cli.main import group
from upcycle.errors import InputError, RequestError, UpcycleError
from upcycle.pipeline import stages
from upcycle.pipeline.document import MAX_BYTES, parse
from upcycle.pipeline.grammar import command_options
from upcycle.pipeline.run import run
from upcycle.pipeline.schema import recipe_schema
from upcycle.pipeline.steps import Recipe, command_line, find_recipe, packaged, read_recipe
from upcycle.requests.commands import COMMANDS, command_of

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "recipes/recipe.schema.json"
HEAD = "name: some\ndescription: one line\nsteps:\n"  # steps begin in line 4
CONVERT = "  - convert: {model: dense, out: moe, experts: 4}\n"


def read(directory: Path, text: str, *overrides: str) -> Recipe:
    """Read a recipe that says `text`."""
    path = directory / "r.yaml"
    path.write_bytes(text.encode())
    return read_recipe(path, overrides)


def refusal(directory: Path, text: str, *overrides: str) -> str:
    """Return why a recipe is refused, without the directory that it is in."""
    with pytest.raises(RequestError) as caught:
        read(directory, text, *overrides)
    return str(caught.value).replace(f"{directory}/", "")


# What is read


def test_a_recipe_becomes_requests(tmp_path):
    text = f"{HEAD}{CONVERT}  - verify: {{}}\n  - generate: {{prompt: Gravity is, max_new_tokens: 32}}\n"
    assert read(tmp_path, text) == Recipe(
        "some",
        "one line",
        (
            requests.Convert(model="dense", out="moe", experts=4),
            requests.Verify(dense="dense", moe="moe"),
            requests.Generate(model="moe", prompt="Gravity is", max_new_tokens=32),
        ),
    )


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("1.5e+3", 1500.0), (".5", 0.5), ("-2.", -2.0), ("+.inf", float("inf")),
        ("0", 0), ("-7", -7), ("100_000", 100_000), ("true", True), ("FALSE", False), ("~", None), ("null", None),
        # text, although YAML 1.1 reads some of these as other things
        ("no", "no"), ("on", "on"), ("12:30", "12:30"), ("010", "010"), ("0x1f", "0x1f"), ("2024-01-01", "2024-01-01"),
        ("1e", "1e"), ("e5", "e5"), (".", "."), ("=", "="), ("'7'", "7"), ("!!str 7", "7"), ("!!int '7'", 7),
    ],
)  # fmt: skip
def test_single_values(said, read):
    data = parse(said, str).data
    assert (type(data), data) == (type(read), read)


def test_numbers_with_exponents_reach_the_request(tmp_path):
    text = f"{HEAD}  - convert: {{model: dense, out: moe, router_std: 1e-4, noise: 0}}\n"
    (convert,) = read(tmp_path, text).steps
    assert (convert.router_std, convert.noise, type(convert.noise)) == (1e-4, 0.0, float)


def test_lists_anchors_and_byte_order_marks(tmp_path):
    text = (
        f"\ufeff{HEAD}  - convert:\n      model: &m dense\n      out: moe\n      ignore_config: [a, b]\n"
        "  - verify: {dense: *m, text: null}\n"
    )
    convert, verify = read(tmp_path, text).steps
    assert convert.ignore_config == ("a", "b")
    assert (verify.dense, verify.text) == ("dense", None)


# What is refused

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
TOP = "name, description, steps"
CONVERT_OPTIONS = ", ".join(command_options("convert"))

DOCUMENTS = {
    "empty": ("", "r.yaml:1: is empty; expected a recipe: name, description and steps"),
    "only a comment": ("# soon\n", "r.yaml:1: is empty; expected a recipe: name, description and steps"),
    "no mapping": ("steps", "r.yaml:1: the recipe has the wrong type; found the text 'steps', expected a mapping"),
    "duplicate key": (
        f"{HEAD}  - convert: {{model: a,\n      out: b, model: c}}\n",
        "r.yaml:5: has the key 'model' a second time; the first is at r.yaml:4",
    ),
    "duplicate quoted key": (
        'name: a\n"name": b\n',
        "r.yaml:2: has the key 'name' a second time; the first is at r.yaml:1",
    ),
    "two documents": (
        f"{HEAD}{CONVERT}---\nname: other\n",
        "r.yaml:5: holds a second document; expected one recipe in a file",
    ),
    "tabs": (
        f"{HEAD}  - convert:\n\t  model: a\n",
        r"r.yaml:5: is not sound YAML (found character '\t' that cannot start any token); "
        "indent with spaces, not tabs",
    ),
    "broken": ("name: [a\n", "r.yaml:2: is not sound YAML (expected ',' or ']', but got '<stream end>')"),
    "python object": (
        f"{HEAD}  - !!python/object/apply:os.system [echo]\n",
        "r.yaml:4: has the tag tag:yaml.org,2002:python/object/apply:os.system; expected values without tags",
    ),
    "own tag": ("name: !mine a\n", "r.yaml:1: has the tag !mine; expected values without tags"),
    "tag that does not fit": ("name: !!int a\n", "r.yaml:1: cannot be read; found 'a', expected int"),
    "endless number": (f"name: {'9' * 5000}\n", f"r.yaml:1: cannot be read; found '{'9' * 57}...', expected int"),
    "alias bomb": (BOMB, "r.yaml:1: has the anchor &a on a list or mapping; expected anchors on single values only"),
    "alias of itself": (
        "a: &a {b: *a}\n",
        "r.yaml:1: has the anchor &a on a list or mapping; expected anchors on single values only",
    ),
    "anchor twice": (
        "name: &a b\ndescription: &a c\n",
        "r.yaml:2: has the anchor &a a second time; expected another name",
    ),
    "alias of nothing": ("name: *n\n", "r.yaml:1: is not sound YAML (found undefined alias 'n')"),
    "depth": (f"name: {'[' * 100_000}", "r.yaml:1: is nested too deeply; expected 8 levels or less"),
    "depth of 9": (f"name: {'[' * 8}{']' * 8}", "r.yaml:1: is nested too deeply; expected 8 levels or less"),
    "list as key": ("? [a, b]\n: c\n", "r.yaml:1: has a list or mapping as a key; expected a name"),
    "control character": ("name: a\ndescription: b\x07\n", "r.yaml:2: holds a control character; found #x07"),
    "size": (f"# {'x' * MAX_BYTES}", "r.yaml: is too large for a recipe; expected 1,000,000 bytes or less"),
}

GRAMMAR = {
    "unknown key": (
        f"{HEAD}{CONVERT}step: 1\n",
        f"r.yaml:5: unknown key; found 'step', expected one of {TOP}; did you mean steps?",
    ),
    "missing key": ("name: a\nsteps: []\n", "r.yaml:1: lacks description; expected name, description and steps"),
    "long description": (
        'name: a\ndescription: "a\\nb"\nsteps: [verify: {dense: a, moe: b}]',
        r"r.yaml:2: description has the wrong type; found the text 'a\nb', expected one line of text",
    ),
    "escapes for the terminal": (
        'name: "a\\e[2J"\ndescription: b\nsteps: [verify: {dense: a, moe: b}]',
        r"r.yaml:1: name has the wrong type; found the text 'a\x1b[2J', expected one line of text",
    ),
    "no steps": (
        "name: a\ndescription: b\nsteps: []\n",
        "r.yaml:3: steps has the wrong type; found a list, expected a list of steps such as `- verify: {}`",
    ),
    "bare step": (
        f"{HEAD}  - verify\n",
        "r.yaml:4: a step has the wrong type; found the text 'verify', expected a mapping; such as `- verify: {}`",
    ),
    "step without options": (
        f"{HEAD}  - verify:\n",
        "r.yaml:4: verify has the wrong type; found nothing, expected a mapping; such as `verify: {}`",
    ),
    "two commands": (
        f"{HEAD}  - plan: {{model: a}}\n    verify: {{}}\n",
        "r.yaml:4: a step is one command; found plan, verify",
    ),
    "unknown command": (
        f"{HEAD}  - confirm: {{}}\n",
        f"r.yaml:4: unknown command; found 'confirm', expected one of {', '.join(COMMANDS)}",
    ),
    "mistyped command": (
        f"{HEAD}  - convrt: {{model: a, out: b}}\n",
        f"r.yaml:4: unknown command; found 'convrt', expected one of {', '.join(COMMANDS)}; did you mean convert?",
    ),
    "unknown option": (
        f"{HEAD}  - convert:\n      model: a\n      top-k: 1\n",
        f"r.yaml:6: unknown option of convert; found 'top-k', expected one of {CONVERT_OPTIONS}; did you mean top_k?",
    ),
    "merge key": (
        f"{HEAD}  - generate: {{<<: {{prompt: a}}}}\n",
        f"r.yaml:4: unknown option of generate; found '<<', expected one of {', '.join(command_options('generate'))}",
    ),
    "text for a number": (
        f"{HEAD}  - convert: {{model: a, out: b, experts: eight}}\n",
        "r.yaml:4: convert.experts has the wrong type; found the text 'eight', expected a whole number",
    ),
    "truth for a number": (
        f"{HEAD}  - convert: {{model: a, out: b, experts: true}}\n",
        "r.yaml:4: convert.experts has the wrong type; found true, expected a whole number",
    ),
    "text for a truth": (
        f"{HEAD}  - convert: {{model: a, out: b, overwrite: yes}}\n",
        "r.yaml:4: convert.overwrite has the wrong type; found the text 'yes', expected true or false",
    ),
    "number for text": (
        f"{HEAD}  - generate: {{model: a, prompt: 7}}\n",
        "r.yaml:4: generate.prompt has the wrong type; found the number 7, expected text; put it in quotes",
    ),
    "nothing for text": (
        f"{HEAD}  - plan: {{model: }}\n",
        "r.yaml:4: plan.model has the wrong type; found nothing, expected text",
    ),
    "text for a list": (
        f"{HEAD}  - plan: {{model: a, ignore_config: b}}\n",
        "r.yaml:4: plan.ignore_config has the wrong type; found the text 'b', expected a list, each text",
    ),
    "number in a list": (
        f"{HEAD}  - plan:\n      model: a\n      ignore_config:\n        - b\n        - 7\n",
        "r.yaml:8: an item of plan.ignore_config has the wrong type; found the number 7, expected text; "
        "put it in quotes",
    ),
    "none of the choices": (
        f"{HEAD}  - plan: {{model: a, router: best}}\n",
        "r.yaml:4: plan.router is none of its choices; found the text 'best', expected one of normal, zeros",
    ),
    "mistyped choice": (
        f"{HEAD}  - plan: {{model: a, router: norml}}\n",
        "r.yaml:4: plan.router is none of its choices; found the text 'norml', expected one of normal, zeros; "
        "did you mean normal?",
    ),
    "no prompt": (f"{HEAD}  - generate: {{model: a}}\n", "r.yaml:4: generate lacks prompt; expected text"),
}

VALUES = {
    "refused by the request": (
        f"{HEAD}  - convert:\n      model: a\n      out: b\n      experts: 4\n      top_k: 5\n",
        "r.yaml:8: convert.top_k is out of range; found 5, expected 1 to the 4 experts",
    ),
    "refused default": (
        f"{HEAD}  - convert: {{model: a, out: b, experts: 1}}\n",
        "r.yaml:4: convert.top_k is out of range; found 2, expected 1 to the 1 experts",
    ),
    "not a number": (
        f"{HEAD}  - convert: {{model: a, out: b, noise: .nan}}\n",
        "r.yaml:4: convert.noise is out of range; found nan, expected a finite number, 0 or more",
    ),
    "too large for a float": (
        f"{HEAD}  - convert: {{model: a, out: b, noise: {'9' * 400}}}\n",
        f"r.yaml:4: convert.noise has the wrong type; found the number {'9' * 57}..., "
        "expected a number that fits in 64 bits",
    ),
    "nothing before": (
        f"{HEAD}  - convert: {{out: moe}}\n",
        "r.yaml:4: convert lacks model; expected text; no step comes before it to take it from",
    ),
    "nothing to verify": (
        f"{HEAD}  - plan: {{model: a}}\n  - verify: {{}}\n",
        "r.yaml:5: verify lacks dense; expected text; no step comes before it to take it from",
    ),
}
CASES = {**DOCUMENTS, **GRAMMAR, **VALUES}


@pytest.mark.parametrize("case", CASES)
def test_refusals_name_line_and_reason(tmp_path, case):
    text, message = CASES[case]
    assert refusal(tmp_path, text) == message


@pytest.mark.parametrize("case", GRAMMAR)
def test_the_schema_refuses_what_the_grammar_refuses(case):
    data = yaml.safe_load(GRAMMAR[case][0].replace("yes}", "'yes'}").replace("<<", "merge"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, recipe_schema())


PIECES = [*"{}[]:,-?&*!|>'\"%@`# \n\t\\~<=0.e\x00\ud800", "a", "&a ", "*a ", "!!int ", "---\n", "? ", "\n  - ", ": "]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_whatever_is_not_read_is_refused(text):
    try:
        parse(text, str)
    except RequestError as error:
        assert error.where is not None  # noqa: PT017  most texts are refused, some are not


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(RequestError, match=r"no\.yaml: cannot be read \(No such file or directory\)$"):
        read_recipe(tmp_path / "no.yaml")
    with pytest.raises(RequestError, match=r"cannot be read \(Is a directory\)$"):
        read_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: a\ndescription: caf\xe9\n")
    with pytest.raises(RequestError, match=r"latin\.yaml:2: is not UTF-8 text$"):
        read_recipe(tmp_path / "latin.yaml")


# How steps link


def test_steps_take_what_they_leave_out_from_the_last_convert(tmp_path):
    text = (
        f"{HEAD}  - convert: {{model: a, out: b}}\n  - convert: {{out: c}}\n  - verify: {{}}\n"
        "  - generate: {prompt: p}\n  - generate: {prompt: p, model: other}\n  - plan: {}\n"
    )
    _, second, verify, generate, other, plan = read(tmp_path, text).steps
    assert (second.model, second.out) == ("b", "c")
    assert (verify.dense, verify.moe) == ("b", "c")
    assert (generate.model, other.model, plan.model) == ("c", "other", "c")


# --set

TWICE = f"{HEAD}  - convert: {{model: a, out: b}}\n  - verify: {{}}\n  - convert: {{model: c, out: d}}\n"


def test_overrides(tmp_path):
    one = read(
        tmp_path, f"{HEAD}{CONVERT}  - verify: {{}}\n",
        "convert.experts=8", "convert.noise=1e-2", "convert.model=org/name@v1.0=x", "convert.tokenizer=",
        "convert.ignore_config=[a, b]", "convert.0.experts=16", "verify.tensors_only=true",
    )  # fmt: skip
    convert, verify = one.steps
    assert convert == requests.Convert(
        model="org/name@v1.0=x", out="moe", experts=16, noise=0.01, ignore_config=("a", "b")
    )
    assert verify == requests.Verify(dense="org/name@v1.0=x", moe="moe", tensors_only=True)


def test_overrides_by_index(tmp_path):
    first, _, second = read(tmp_path, TWICE, "convert.1.experts=16", "convert.0.out=e").steps
    assert (first.experts, first.out, second.experts, second.out) == (8, "e", 16, "d")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experts=8", "cannot be read; expected STEP.FIELD=VALUE, such as convert.experts=8"),
        ("convert.experts", "cannot be read; expected STEP.FIELD=VALUE, such as convert.experts=8"),
        ("convert.x.experts=8", "cannot be read; expected STEP.FIELD=VALUE, such as convert.experts=8"),
        ("convert.experts=8", "names several steps; found 2 of convert, expected convert.0 to convert.1"),
        ("convert.2.experts=8", "names no step; found 2 of convert, counted from 0"),
        ("vérify.tokens=8", "unknown step; found 'vérify', expected one of convert, verify; did you mean verify?"),
        ("plan.model=a", "unknown step; found 'plan', expected one of convert, verify"),
        (
            "verify.token=8",
            "unknown option of verify; found 'token', expected one of dense, moe, allow_pickle, text, tokens, "
            "tensors_only, record; did you mean tokens?",
        ),
        ("verify.tokens=many", "verify.tokens has the wrong type; found the text 'many', expected a whole number"),
        ("verify.tokens=1", "verify.tokens is out of range; found 1, expected 2 to a million"),
        ("verify.text=!!python/name:os", "has the tag tag:yaml.org,2002:python/name:os; expected values without tags"),
        ("verify.text=[", "is not sound YAML (expected the node content, but found '<stream end>')"),
    ],
)
def test_overrides_that_are_refused(tmp_path, override, message):
    assert refusal(tmp_path, TWICE, override) == f"--set {override}: {message}"


# The tables, the command line and the schema


@pytest.mark.parametrize(
    "request_",
    [
        requests.Plan(model="a b", ignore_config=("x", "y")),
        requests.Convert(model="a", out="-b", experts=4, noise=1e-6, router="zeros", dtype="f16", overwrite=True),
        requests.Verify(dense="a", moe="b", text="it's", tokens=9, tensors_only=True),
        requests.Generate(model="a", prompt="- Gravity is", seed=-1, chat=True, temperature=0.5),
        requests.Generate(model="a", prompt="", chat=False),
    ],
)
def test_command_lines_say_the_request(request_):
    program, name, *words = shlex.split(command_line(request_))
    top = click.Context(group, **group.context_settings)
    command = group.get_command(top, name)
    assert command is not None
    values = command.make_context(name, words, parent=top).params
    assert program == "upcycle"
    assert COMMANDS[name].request(**{item.name: values[item.name] for item in fields(request_)}) == request_


def test_the_schema_is_sound_and_current():
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    printed = CliRunner().invoke(group, ["run", "--schema"]).output
    assert json.loads(printed) == recipe_schema()
    assert SCHEMA.read_text() == printed, "run `upcycle run --schema > recipes/recipe.schema.json`"


# The packaged recipes


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_recipes(path):
    text = path.read_text()
    jsonschema.validate(yaml.safe_load(text), recipe_schema())
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert read_recipe(path).name == path.stem
    assert find_recipe(path.stem) == packaged()[path.stem] == path


def test_listing_the_packaged_recipes():
    done = CliRunner().invoke(group, ["run", "--list"])
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == list(packaged())


def test_finding_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-4x135m").mkdir()  # a directory of that name is no recipe
    assert find_recipe("smollm2-4x135m") == packaged()["smollm2-4x135m"]
    assert find_recipe("./smollm2-4x135m") == Path("smollm2-4x135m")
    assert find_recipe("mine.yaml") == Path("mine.yaml")
    (tmp_path / "mine").write_text(HEAD)
    assert find_recipe("mine") == Path("mine")
    with pytest.raises(RequestError) as caught:
        find_recipe("smollm2")
    assert str(caught.value) == (
        f"upcycle run: unknown recipe; found 'smollm2', expected one of a file, {', '.join(packaged())}; "
        "did you mean smollm2-4x135m?"
    )


def test_every_directory_is_packaged():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    files = (path for path in (ROOT / "upcycle").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in files}
    assert sorted({*found, "upcycle.data.recipes"}) == listed, "[tool.setuptools] packages in pyproject.toml"


def test_every_file_that_is_no_program_is_packaged():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {
        path
        for package, globs in patterns.items()
        for pattern in globs
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {path for path in (ROOT / "upcycle").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files if path.suffix != ".py"} <= shipped


@pytest.mark.slow
def test_the_wheel_holds_the_recipes(tmp_path):
    source = tmp_path / "source"
    for name in ("upcycle", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "README.md").touch()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "from upcycle.pipeline.steps import packaged; print(*packaged().values(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "installed", check=True, capture_output=True, text=True
    )
    shelf = tmp_path / "installed/upcycle/data/recipes"
    assert done.stdout.split() == [str(shelf / f"{name}.yaml") for name in packaged()]
    assert (shelf / "recipe.schema.json").read_text() == SCHEMA.read_text()
    templates = {path.name for path in (ROOT / "upcycle/card").glob("*.j2")}
    assert {path.name for path in (tmp_path / "installed/upcycle/card").glob("*.j2")} == templates != set()


# Running


def invoke(path: Path, *words: str) -> Result:
    return CliRunner().invoke(group, ["run", str(path), *words])


def test_dry_run_shows_the_commands_and_the_figures_and_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(
        f"{HEAD}  - convert: {{model: {tiny}, out: moe, experts: 4}}\n  - verify: {{tokens: 64}}\n"
        "  - generate: {prompt: Gravity is}\n  - convert: {out: again}\n"
    )
    done = invoke(Path("r.yaml"), "--set", "convert.0.top_k=3", "--dry-run")
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]
    heads = [line for line in done.output.splitlines() if line.startswith("[")]
    assert heads == [
        f"[1/4] upcycle convert {tiny} moe --experts 4 --top-k 3",
        f"[2/4] upcycle verify {tiny} moe --tokens 64",
        "[3/4] upcycle generate moe 'Gravity is'",
        "[4/4] upcycle convert moe again",
    ]
    # 4 experts in 2 layers, 3 matrices each
    assert [line.split()[:2] for line in done.output.splitlines() if line.startswith("experts")] == [["experts", "24"]]
    assert done.output.splitlines()[0] == "some: one line"
    assert (
        done.output.splitlines()[-1] == "no figures: moe is not here yet: an earlier step makes it, or it is downloaded"
    )


def test_a_chain_runs_and_honours_overwrite_and_dry_run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "moe"
    text = f"{HEAD}  - convert: {{model: {tiny}, out: {out}, experts: 4}}\n  - verify: {{tensors_only: true}}\n"
    (tmp_path / "r.yaml").write_text(text)
    dry = CliRunner().invoke(group, ["run", str(tmp_path / "r.yaml"), "--set", "convert.dry_run=true"])
    assert isinstance(dry.exception, UpcycleError)  # verify: there is nothing yet
    assert not out.exists()
    done = invoke(tmp_path / "r.yaml")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == "verified"
    again = invoke(tmp_path / "r.yaml", "--again")
    assert isinstance(again.exception, UpcycleError)
    assert "overwrite" in str(again.exception)
    assert invoke(tmp_path / "r.yaml", "--again", "--set", "convert.overwrite=true").exit_code == 0


class Silent:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begin(self, number: int, count: int, request: Any) -> None:
        self.told.append((number, count, command_of(request).name))

    @contextmanager
    def progress(self, what: str) -> Iterator[Any]:
        self.told.append(what)
        yield lambda _total: lambda _count: None

    @contextmanager
    def training(self):
        self.told.append("training")
        yield self

    def write(self, piece: str) -> None:
        self.told.append(piece)

    def end(self, _request: Any, result: Any) -> None:
        self.told.append(result)


def test_a_failed_verify_stops_the_chain(monkeypatch):
    class Report:
        passed = False

    report = Report()
    monkeypatch.setattr(stages, "verify", lambda *_: report)
    generate = requests.Generate(model="moe", prompt="p")
    observer = Silent()
    with pytest.raises(UpcycleError) as caught:
        run(Recipe("some", "one line", (requests.Verify(dense="dense", moe="moe"), generate, generate)), observer)
    assert str(caught.value) == "some: step 1 of 3, verify, did not pass; 2 steps after it did not run"
    assert observer.told == [(1, 3, "verify"), "comparing", report]


def test_a_failed_verify_exits_1(tiny, dense, tmp_path):
    (tmp_path / "r.yaml").write_text(
        f"{HEAD}  - convert: {{model: {tiny}, out: {tmp_path / 'moe'}, experts: 4}}\n"
        f"  - verify: {{dense: {dense('llama_gelu')}, tensors_only: true}}\n  - generate: {{prompt: p}}\n"
    )
    program = [sys.executable, "-m", "upcycle.cli", "run", str(tmp_path / "r.yaml")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "NOT VERIFIED"
    assert done.stderr == (
        "upcycle: error: some: step 2 of 3, verify, did not pass; 1 step after it did not run; "
        "the same command skips step 1, which is done, and continues here\n"
    )


def test_generated_text_is_shown_as_it_comes(monkeypatch):
    pieces = ["It ", "falls."]
    monkeypatch.setattr(stages, "generate", lambda _, show: [show(piece) for piece in pieces] and "".join(pieces))
    observer = Silent()
    run(Recipe("some", "one line", (requests.Generate(model="moe", prompt="p"),)), observer)
    assert observer.told == [(1, 1, "generate"), "It ", "falls.", "It falls."]


def test_a_dry_run_looks_for_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = "name: some\ndescription: one line\nsteps:\n  - convert: {model: 'demo:tiny', out: moe, experts: 4}\n"
    Path("r.yaml").write_text(said + "  - train: {out: trained, data: [book.txt], seq_len: 64}\n")
    missing = invoke(Path("r.yaml"), "--dry-run").exception
    assert isinstance(missing, InputError)
    assert str(missing).startswith("book.txt: no such file or directory")
    assert missing.__notes__ == ["this is step 2 of 2, train"]
    Path("book.txt").write_text("In the beginning.")
    assert invoke(Path("r.yaml"), "--dry-run").exit_code == 0
    away = invoke(Path("r.yaml"), "--dry-run", "--set", "convert.model=/nope/x")
    assert str(away.exception).startswith("/nope/x: no such file or directory")
