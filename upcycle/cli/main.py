"""The program `upcycle`: the group of all commands, made one by one so that `--help` is instant, and the exit codes."""

import inspect
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click

from upcycle import __version__
from upcycle.cli.command import click_command
from upcycle.cli.options import HELP_OPTIONS, with_nearest
from upcycle.errors import InputError, UpcycleError
from upcycle.requests.commands import COMMANDS

SCREEN = 80 * 24 - 60
"""Characters of the longest message."""

OTHERS = {"run": "upcycle.cli.recipes", "demo": "upcycle.cli.demo"}
"""Commands that are no single request -> the module that holds them."""


def names() -> list[str]:
    """Return the names of all commands, in the order of a first use."""
    return [*COMMANDS, *OTHERS]


class Terminated(BaseException):
    """SIGTERM: ends the work like Ctrl-C, with another exit code."""


class LazyGroup(click.Group):
    """A group whose commands are made, or imported, when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order of a first use."""
        return names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command; None when there is none of that name."""
        if cmd_name in COMMANDS:
            return click_command(COMMANDS[cmd_name])
        if cmd_name not in OTHERS:
            return None
        command: click.Command = getattr(import_module(OTHERS[cmd_name]), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; an unknown command is answered with the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(with_nearest(error.message, args[0], names()), ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with its arguments and the first sentence of its help."""
        rows = []
        for name in names():
            command = self.get_command(ctx, name) or click.Command(name)
            words = [
                parameter.make_metavar(ctx) for parameter in command.params if parameter.param_type_name == "argument"
            ]
            rows.append((" ".join([name, *words]), inspect.cleandoc(command.help or "").partition("\n\n")[0]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings=HELP_OPTIONS)
@click.version_option(__version__, prog_name="upcycle")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def group(debug: bool) -> None:
    """Turn a dense language model into a mixture of experts, prove it, and use it."""


def main() -> NoReturn:
    """Run the command line; exit 0 done, 2 wrong request or input, 1 other failures, 130 Ctrl-C, 143 SIGTERM."""
    debug = "--debug" in sys.argv[1:]
    sys.argv[1:] = ["--debug"] * debug + [word for word in sys.argv[1:] if word != "--debug"]
    signal.signal(signal.SIGTERM, _terminate)
    logger, handler = logging.getLogger("upcycle"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("upcycle: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of a kernel for CPUs that nothing here calls
    warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")  # of a shared expert, on purpose
    try:
        sys.exit(group.main(standalone_mode=False) or 0)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as stop:
        _say("; ".join(["interrupted", *_notes(stop)]))
        _leave(130)
    except Terminated as stop:
        _say("; ".join(["terminated", *_notes(stop)]))
        _leave(143)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:  # the last net: one line, the traceback on request
        if debug:
            traceback.print_exc()
        known = isinstance(error, UpcycleError | OSError)
        what = f"{'error' if known else f'internal error: {type(error).__name__}'}: {error}"
        _say("; ".join([what, *getattr(error, "__notes__", [])]))
        sys.exit(2 if isinstance(error, InputError) else 1)


def _leave(code: int) -> NoReturn:
    """Exit, without waiting for threads of libraries that are still at work, such as an upload."""
    if threading.active_count() > 1:  # daemons too: Python waits for a pool's workers, whatever they are
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _notes(error: BaseException) -> list[str]:
    """What the code that was interrupted had to say; click raises its Abort from the KeyboardInterrupt."""
    cause = error.__cause__ or error.__context__ or error
    return [*getattr(error, "__notes__", []), *(getattr(cause, "__notes__", []) if cause is not error else [])]


def _say(message: str) -> None:
    """Print one line that a terminal shows as it is: what comes out of files is no command to it, and no novel."""
    from upcycle.cli.tables import printable

    text = printable(f"upcycle: {message}")
    click.echo(text if len(text) <= SCREEN else f"{text[: SCREEN // 2]} ... {text[-SCREEN // 2 :]}", err=True)
