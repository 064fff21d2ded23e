"""How commands show their options in `--help`, and the click parameter of each option of a request."""

from collections.abc import Iterable
from dataclasses import MISSING
from typing import Any

import click

from upcycle.option import Option, nearest

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


class Choice(click.Choice[str]):
    """One of several words; a slip is answered with the nearest of them."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """As click's, and which word was meant."""
        return with_nearest(super().get_invalid_choice_message(value, ctx), str(value), self.choices)


def with_nearest(message: str, word: str, known: Iterable[str]) -> str:
    """Return a message of click's, and which of the `known` words was meant by `word`, if any."""
    meant = nearest(word, known)
    return f"{message} {meant[0].upper()}{meant[1:]}" if meant else message


def parameter(option: Option) -> click.Parameter:
    """Return the click parameter that reads an option of a request."""
    kind: Any = Choice(option.choices) if option.choices else option.kind
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
