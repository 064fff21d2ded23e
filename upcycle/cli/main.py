"""The `upcycle` group, loaded command by command so that `--help` is instant, and the exit codes."""

import logging
import os
import signal
import sys
import threading
import traceback
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click

from upcycle import __version__
from upcycle.cli.options import HELP_OPTIONS
from upcycle.errors import InputError, UpcycleError

SCREEN = 80 * 24 - 60
"""Characters of the longest message."""

COMMANDS = {
    "plan": "upcycle.cli.convert",
    "convert": "upcycle.cli.convert",
    "verify": "upcycle.cli.verify",
    "attach": "upcycle.cli.attach",
    "train": "upcycle.cli.train",
    "merge": "upcycle.cli.merge",
    "plot": "upcycle.cli.plot",
    "generate": "upcycle.cli.generate",
    "push": "upcycle.cli.push",
    "run": "upcycle.cli.run",
    "demo": "upcycle.cli.demo",
}
"""Command -> the module that holds it, in the order of a first use."""


class Terminated(BaseException):
    """SIGTERM: ends the work like Ctrl-C, with another exit code."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order of a first use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return a command; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[cmd_name]), cmd_name)
        return command


@click.group(cls=LazyGroup, context_settings=HELP_OPTIONS)
@click.version_option(__version__, prog_name="upcycle")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def group(debug: bool) -> None:
    """Turn a dense language model into a mixture of experts, prove it, and use it.

    \b
    upcycle plan    MODEL             what would be written, from headers alone
    upcycle convert MODEL OUT         dense checkpoint -> mixture of experts
    upcycle verify  DENSE MOE         the proof that they compute the same
    upcycle attach  MODEL OUT         small experts on a frozen model, as an adapter
    upcycle train   MODEL OUT         train any of them on
    upcycle merge   ADAPTER OUT       an adapter's experts -> mixture of experts
    upcycle push    MODEL REPO        to the Hub, with a model card
    """


def main() -> NoReturn:
    """Run the command line; exit 0 done, 2 wrong request or input, 1 other failures, 130 Ctrl-C, 143 SIGTERM."""
    debug = "--debug" in sys.argv[1:]
    sys.argv[1:] = ["--debug"] * debug + [word for word in sys.argv[1:] if word != "--debug"]
    signal.signal(signal.SIGTERM, _terminate)
    logger, handler = logging.getLogger("upcycle"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("upcycle: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
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
