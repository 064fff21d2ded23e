"""Makes the click command of each row of `upcycle.requests.commands`: parse, carry out, print, exit code."""

from typing import Any

import click

from upcycle.cli.options import GroupedCommand, parameter
from upcycle.cli.show import has_json, print_result
from upcycle.option import options_of
from upcycle.requests.command import Command


def click_command(command: Command) -> GroupedCommand:
    """Return the click command of a row; its help is the docstring of the request."""
    options = options_of(command.request)

    def callback(as_json: bool = False, **values: Any) -> None:
        _carry_out(command.request(**values), as_json)

    parameters = [parameter(option) for option in options.values()]
    if has_json(command.request):
        parameters.append(click.Option(["as_json", "--json"], is_flag=True, help="Print JSON."))
    made = GroupedCommand(
        command.name, callback=callback, params=parameters, help=command.request.__doc__, no_args_is_help=True
    )
    made.groups = {name: option.group for name, option in options.items()}
    made.example = command.example
    return made


def _carry_out(request: Any, as_json: bool) -> None:
    """Carry out a request and print its result; exit with 1 when that is a check which did not pass."""
    from upcycle.cli.progress import Terminal
    from upcycle.pipeline.stages import run_shown

    result = run_shown(request, Terminal())
    print_result(request, result, as_json=as_json)
    if not getattr(result, "passed", True):
        raise click.exceptions.Exit(1)
