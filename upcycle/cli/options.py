"""Commands made from the dataclasses of `upcycle.recipe`: one field, one option, one line of help."""

import types
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

Request = TypeVar("Request")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
"""Shared by every command that prints a table."""


class GroupedCommand(click.Command):
    """A command whose `--help` lists options under headings and ends with an example."""

    groups: dict[str, str]  # parameter name -> heading
    example: str

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
        names = [item.name for item in fields(request)]  # type: ignore[arg-type]

        def callback(**values: Any) -> int | None:
            asked = request(**{name: values.pop(name) for name in names})
            return function(asked, **values)

        parameters = [_parameter(item, hint) for item, hint in _described(request)]
        parameters += reversed(getattr(function, "__click_params__", []))
        made = GroupedCommand(
            function.__name__, callback=callback, params=parameters, help=request.__doc__, no_args_is_help=True
        )
        made.groups = {
            item.name: "Arguments" if item.metadata.get("positional") else item.metadata.get("group", "Options")
            for item, _ in _described(request)
        }
        made.example = example
        return made

    return decorate


def _described(request: type[Any]) -> list[tuple[Field[Any], Any]]:
    """The fields with their types; positional ones as the usage line has them, MODEL first."""
    hints = get_type_hints(request)
    return [(item, hints[item.name]) for item in fields(request)]


def _parameter(item: Field[Any], hint: Any) -> click.Parameter:
    kind, multiple, optional = _click_type(hint)
    metadata = item.metadata
    if metadata.get("positional"):
        return HelpfulArgument([item.name], help=metadata["help"], type=kind)
    flag = f"--{item.name.replace('_', '-')}"
    names = [item.name, flag, *([f"-{metadata['short']}"] if "short" in metadata else [])]
    if kind is bool:
        names[1] = f"{flag}/--no-{flag[2:]}" if optional else flag
    default = None if item.default is MISSING else item.default
    shown = not (default is None or default is False or default == ())
    return click.Option(
        names, type=kind, default=default, help=metadata["help"], multiple=multiple, show_default=shown,
        metavar=metadata.get("metavar"), is_flag=kind is bool,
    )  # fmt: skip


def _click_type(hint: Any) -> tuple[Any, bool, bool]:
    """Return click's type for a field's type, whether it repeats, and whether it may be None."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(part for part in get_args(hint) if part is not type(None))
        return (*_click_type(inner)[:2], True)
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True, False
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint)), False, False
    return hint, False, False
