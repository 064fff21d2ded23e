"""The command line as a whole: help, the reference made of it, exit codes."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli_reference import context, reference, top
from upcycle.cli.main import names
from upcycle.cli.options import GroupedCommand

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "numpy", "yaml", "huggingface_hub", "safetensors"}


def upcycle(*words: str, before: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own."""
    code = f"{before}; from upcycle.cli.main import main; main()".removeprefix("; ")
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)


def test_reference_is_current():
    assert (ROOT / "docs/cli.md").read_text() == reference(), "docs/cli.md is not current: run `make docs`"


@pytest.mark.parametrize("name", names())
def test_help_shows_an_example_that_parses(name):
    command = context(name).command
    assert isinstance(command, GroupedCommand)
    for line in command.example.splitlines():
        assert f"\n  {line}" in context(name).get_help()
        program, named, *words = shlex.split(line)
        assert (program, named) == ("upcycle", name)
        command.make_context(name, words, parent=top())


@pytest.mark.parametrize("name", names())
def test_help_names_every_option_with_a_line(name):
    for parameter in context(name).command.get_params(context(name)):
        record = parameter.get_help_record(context(name))
        assert record is not None, parameter.name
        assert record[1], parameter.name


@pytest.mark.parametrize("words", [(), *((name,) for name in names())], ids=str)
def test_help_is_instant(words):
    """It imports nothing heavy: what takes a second to import would take it of every `--help`."""
    tell = f"print('imported', sorted({HEAVY} & sys.modules.keys()), file=sys.stderr)"
    before = f"import atexit, sys; atexit.register(lambda: {tell})"
    done = upcycle(*words, "--help", before=before)
    assert (done.returncode, done.stderr) == (0, "imported []\n")
    assert f"Usage: {' '.join(['upcycle', *words])}" in done.stdout.replace("-c", "upcycle", 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("melt",), "No such command 'melt'.\n"),
        (("conver", "a", "b"), "No such command 'conver'. Did you mean convert?\n"),
        (("mixtral",), "No such command 'mixtral'.\n"),
        (("plan", "--expert", "4", "model"), "'--experts'"),
        (("plan",), "Usage: "),
        (("plan", "model", "--experts", "many"), "'many' is not a valid integer"),
        (("plan", "model", "--router", "best"), "'best' is not one of 'normal', 'zeros'.\n"),
        (("plan", "model", "--router", "norml"), "'norml' is not one of 'normal', 'zeros'. Did you mean normal?\n"),
        (("plan", "model", "--top-k", "9"), "top_k is out of range; found 9, expected 1 to the 8 experts"),
        (("plan", "no/such/directory"), "no/such/directory: no such directory"),
        (("run", "--dry-run"), "Missing argument 'RECIPE'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_request_exits_2(words, message):
    done = upcycle(*words)
    assert done.returncode == 2, done
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("--debug", "run", "no.yaml"), ("run", "no.yaml", "--debug")], ids=" ".join)
def test_debug_shows_the_traceback(words):
    done = upcycle(*words)
    assert "Traceback" in done.stderr
    assert "RequestError: no.yaml: cannot be read (No such file or directory)" in done.stderr


def test_without_debug_an_internal_error_is_one_line():
    fault = "import upcycle.pipeline.stages as s; s.plan = lambda request: 1 / 0"
    done = upcycle("plan", "model", before=fault)
    assert done.returncode == 1
    assert done.stderr == "upcycle: internal error: ZeroDivisionError: division by zero\n"


def test_interrupting_exits_130_and_terminating_143():
    for name, code, word in (("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")):
        kill = f"os.kill(os.getpid(), signal.{name})"
        # Set, since a process that is started in the background inherits SIGINT as ignored.
        heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
        fault = f"import os, signal, upcycle.pipeline.stages as s; {heard}; s.plan = lambda request: {kill}"
        done = upcycle("plan", "model", before=fault)
        assert done.returncode == code, done
        assert word in done.stderr
