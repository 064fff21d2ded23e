"""Every row of the table of commands is complete, and a dummy row is all that a new command needs."""

import inspect
import shlex
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import upcycle
from tests.cli_reference import context, top
from upcycle import requests
from upcycle.cli.main import group
from upcycle.cli.show import PRINTERS, print_result
from upcycle.errors import RequestError
from upcycle.option import accepts, argument, option, options_of
from upcycle.pipeline.grammar import CHAINED
from upcycle.pipeline.locate import BUILT_IN
from upcycle.pipeline.schema import recipe_schema
from upcycle.pipeline.steps import command_line, read_recipe
from upcycle.requests import commands
from upcycle.requests.command import Command
from upcycle.requests.commands import COMMANDS, command_of
from upcycle.requests.request import Request, result_name

ROWS = pytest.mark.parametrize("row", COMMANDS.values(), ids=list(COMMANDS))


@ROWS
def test_the_request_is_documented(row: Command) -> None:
    assert is_dataclass(row.request)
    assert inspect.cleandoc(row.request.__doc__ or "").partition("\n")[0].endswith((".", ":", ",")), (
        "one sentence first"
    )
    assert all(given.help for given in options_of(row.request).values())
    assert all(given.kind in (int, float, bool, str) for given in options_of(row.request).values())
    assert all(given.positional for name, given in options_of(row.request).items() if name in CHAINED)


@ROWS
def test_the_function_takes_what_the_row_says(row: Command) -> None:
    first, *others = inspect.signature(row.load()).parameters.values()
    assert row.request.__name__ in str(first.annotation) or first.annotation is requests.Conversion
    assert len(others) == (row.reports != "nothing")
    assert (row.doing != "") == (row.reports == "bytes")


@ROWS
def test_the_function_returns_what_the_request_says(row: Command) -> None:
    returned = inspect.signature(row.load()).return_annotation
    name = returned if isinstance(returned, str) else getattr(returned, "__name__", str(returned))
    assert name.strip("\"'").partition("[")[0] == result_name(row.request)


@ROWS
def test_the_result_has_a_printer(row: Command) -> None:
    assert result_name(row.request) in PRINTERS


@ROWS
def test_the_example_is_accepted(row: Command) -> None:
    program, name, *words = shlex.split(row.example)
    assert (program, name) == ("upcycle", row.name)
    values = context(name).command.make_context(name, words, parent=top()).params
    request = row.request(**{item.name: values[item.name] for item in fields(row.request)})  # type: ignore[arg-type]
    assert command_of(request) is row


@ROWS
def test_the_options_that_a_row_names_exist(row: Command) -> None:
    named = {*row.reads, *row.texts, *row.gives.values(), *([row.publishes] if row.publishes else [])}
    assert named <= options_of(row.request).keys()
    assert not set(row.reads) & set(row.texts)
    assert not row.remembers or row.gives or "out" in options_of(row.request) or row.name == "verify"


NAME_MODELS = {"model", "dense", "moe", "adapter", "base", "tokenizer", "from_lora", "metrics", "also"}
NAME_TEXTS = {"data", "eval_data", "text", "chat_template"}


@ROWS
def test_a_row_names_all_that_its_command_reads(row: Command) -> None:
    """A step of a recipe would be skipped although an input that is missing here had changed."""
    assert set(row.reads) == NAME_MODELS & options_of(row.request).keys()
    assert set(row.texts) == NAME_TEXTS & options_of(row.request).keys()


def test_what_is_taken_for_an_option_is_the_same_wherever_it_comes_from() -> None:
    for name in CHAINED:
        assert len({row.gives[name] for row in COMMANDS.values() if name in row.gives}) == 1, name
    descriptions = {
        name: schema["description"] for command in recipe_schema()["$defs"].values()
        for name, schema in command["properties"].items() if name in CHAINED
    }  # fmt: skip
    assert {name: text.partition("Left out: ")[2] for name, text in descriptions.items()} == {
        "model": "the out of the last convert, attach, train or merge step.",
        "dense": "the model of the last convert or attach step.",
        "moe": "the out of the last convert step.",
        "adapter": "the out of the last attach or train step.",
        "metrics": "the out of the last train step.",
    }


def test_the_python_api_has_every_request() -> None:
    named = {row.request.__name__ for row in COMMANDS.values()}
    assert {*named, "run", "InputError", "UpcycleError"} == set(upcycle.__all__)
    assert named < set(dir(upcycle))
    assert all(getattr(upcycle, row.request.__name__) is row.request for row in COMMANDS.values())
    with pytest.raises(AttributeError, match="no attribute 'Merg'"):
        _ = upcycle.Merg


# What an option may be


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"experts": "8"}, "experts is of the wrong kind; found '8', expected a whole number"),
        ({"experts": True}, "experts is of the wrong kind; found True, expected a whole number"),
        ({"noise": None}, "noise is of the wrong kind; found None, expected a number"),
        ({"ignore_config": ["a"]}, "ignore_config is of the wrong kind; found ['a'], expected a list, each text"),
        ({"router": "best"}, "router is none of its choices; found 'best', expected one of normal, zeros"),
        (
            {"router": "zeroes"},
            "router is none of its choices; found 'zeroes', expected one of normal, zeros; did you mean zeros?",
        ),
    ],
)
def test_a_python_program_is_told_what_an_option_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        requests.Plan(model="m", **values)
    assert str(caught.value) == message


def test_accepts() -> None:
    plan, train = options_of(requests.Plan), options_of(requests.Train)
    accepted = [
        (plan["experts"], 8), (plan["noise"], 1), (plan["noise"], 0.5), (plan["tokenizer"], None),
        (plan["ignore_config"], ()), (plan["ignore_config"], ("a", "b")), (plan["router"], "zeros"),
        (train["data_weight"], (1, 2.5)), (train["compile"], True),
    ]  # fmt: skip
    refused = [
        (plan["experts"], 8.0), (plan["experts"], None), (plan["noise"], "1"), (plan["noise"], False),
        (plan["ignore_config"], "a"), (plan["ignore_config"], ("a", 1)), (plan["router"], "Zeros"),
        (train["data_weight"], (1, None)), (train["compile"], 1),
    ]  # fmt: skip
    assert all(accepts(option, value) for option, value in accepted)
    assert not any(accepts(option, value) for option, value in refused)


# A new command


@dataclass(frozen=True, kw_only=True)
class Count(Request[str]):
    """Count the files of a model."""

    model: str = argument("A model directory.")
    only: str = option("", "Count names that end in this.")


def count(request: Count, show: Any = lambda _: None) -> str:
    found = [path for path in BUILT_IN[request.model].iterdir() if path.name.endswith(request.only)]
    show(str(len(found)))
    return str(len(found))


def test_a_new_command_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line, recipes, their schema and `upcycle.run` have it, with no other line changed."""
    row = Command(
        "count", Count, f"{__name__}:count", example="upcycle count mixtral", reads=("model",), reports="text"
    )
    monkeypatch.setitem(COMMANDS, "count", row)
    alone = CliRunner().invoke(group, ["count", "demo:tiny", "--only", "config.json"])
    assert (alone.exit_code, alone.output) == (0, "3\n"), "config, generation_config and tokenizer_config"
    (tmp_path / "r.yaml").write_text(
        "name: some\ndescription: one line\nsteps: [count: {model: 'demo:tiny', only: config.json}]\n"
    )
    monkeypatch.chdir(tmp_path)
    chained = CliRunner().invoke(group, ["run", "r.yaml"])
    assert chained.output.splitlines()[2:] == ["[1/1] upcycle count demo:tiny --only config.json", "3"]
    (step,) = read_recipe(tmp_path / "r.yaml").steps
    assert upcycle.run(step) == "3"
    assert command_line(step) == "upcycle count demo:tiny --only config.json"
    assert recipe_schema()["$defs"]["count"]["properties"]["only"]["default"] == ""
    assert upcycle.Count is Count
    assert "count MODEL" in CliRunner().invoke(group, ["--help"]).output


def test_results_are_printed_by_their_type(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(requests.Plot(metrics="m"), [Path("a.png"), Path("b.png")])
    assert capsys.readouterr().out == f"{Path('a.png')}\n{Path('b.png')}\n"


def test_the_table_is_in_the_order_of_a_first_use() -> None:
    help_ = CliRunner().invoke(group, ["--help"]).output
    listed = [line.split()[0] for line in help_.partition("Commands:\n")[2].splitlines() if line[2:3].strip()]
    assert listed == [*COMMANDS, "run", "demo"]
    assert commands.Merge is requests.Merge
    assert isinstance(group.get_command(click.Context(group), "merge"), click.Command)
