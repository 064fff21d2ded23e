"""Commands made from the dataclasses of `upcycle.requests`: one field, one option, one line of help."""

from collections.abc import Callable
from dataclasses import MISSING
from typing import Any, TypeVar

import click

from upcycle.option import Option, options_of

Request = TypeVar("Request")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
"""Shared by every command that prints a table."""


HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class GroupedCommand(click.Command):
    """A command whose `--help` lists options under headings and ends with an example."""

    groups: dict[str, str]  # parameter name -> heading
    example: str

    def __init__(self, *args: Any, **settings: Any) -> None:
        """As click.Command, with `-h` beside `--help`."""
        super().__init__(*args, **{"context_settings": HELP_OPTIONS, **settings})

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write nothing: newer releases of click would list the arguments a second time."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write arguments with their help, then options by heading, then the example."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            heading = self.groups.get(parameter.name or "", "Options")
            record = parameter.get_help_record(ctx)
            if record is not None:
                rows.setdefault(heading, []).append(record)
        for heading, records in rows.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        with formatter.section("Example"):
            for line in self.example.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class HelpfulArgument(click.Argument):
    """An argument with a line of help, which click's own lacks."""

    def __init__(self, *args: Any, help: str, **kwargs: Any) -> None:
        """As click.Argument."""
        super().__init__(*args, **kwargs)
        self.help = help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return the line for `--help`."""
        return self.make_metavar(ctx), self.help or ""


def command(request: type[Request], *, example: str) -> Callable[[Callable[..., int | None]], GroupedCommand]:
    """Return a decorator that makes a click command of `f(request, **other)`; its help is the request's docstring."""

    def decorate(function: Callable[..., int | None]) -> GroupedCommand:
        options = options_of(request)

        def callback(**values: Any) -> int | None:
            asked = request(**{name: values.pop(name) for name in options})
            return function(asked, **values)

        parameters = [_parameter(option) for option in options.values()]
        parameters += reversed(getattr(function, "__click_params__", []))
        made = GroupedCommand(
            function.__name__, callback=callback, params=parameters, help=request.__doc__, no_args_is_help=True
        )
        made.groups = {name: option.group for name, option in options.items()}
        made.example = example
        return made

    return decorate


class Joined(click.ParamType[tuple[Any, ...]]):
    """Several values in one word, with commas between them."""

    def __init__(self, kind: type) -> None:
        """`kind` is that of one value."""
        self.one = click.types.convert_type(kind)
        self.name = self.one.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the values of a word."""
        if isinstance(value, tuple):  # the default
            return value
        return tuple(self.one.convert(part.strip(), param, ctx) for part in value.split(","))


def _parameter(option: Option) -> click.Parameter:
    kind: Any = click.Choice(option.choices) if option.choices else option.kind
    if option.positional:
        left_out = {} if option.default is MISSING else {"required": False, "default": option.default}
        return HelpfulArgument([option.name], help=option.help, type=kind, **left_out)
    flag = f"--{option.name.replace('_', '-')}"
    if option.kind is bool and (option.nullable or option.default is True):
        flag = f"{flag}/--no-{flag[2:]}"
    return click.Option(
        [option.name, flag, *([f"-{option.short}"] if option.short else [])],
        type=Joined(option.kind) if option.joined else kind,
        default=option.default,
        help=option.help,
        multiple=option.many and not option.joined,
        show_default=not any(option.default is blank for blank in (None, False, ())),
        metavar=option.metavar,
        is_flag=option.kind is bool,
    )
