"""Prints docs/cli.md, the reference of the command line: `python -m tests.cli_reference`."""

import click

from upcycle.cli.main import group, names

WIDTH = 100
INTRODUCTION = """\
# The command line

What `--help` says, command by command. Made by `make docs`; a test checks that it is current.
"""


def reference() -> str:
    """Return the page; it depends on the commands alone, not on the terminal that it is made in."""
    return "\n".join([INTRODUCTION, _section(top()), *(_section(context(name)) for name in names())])


def top() -> click.Context:
    """Return the context of `upcycle` itself."""
    return click.Context(group, info_name="upcycle", terminal_width=WIDTH, color=False, **group.context_settings)


def context(name: str) -> click.Context:
    """Return the context of a command. Below `top`, for a command keeps the `--help` of its first context."""
    parent = top()
    command = group.get_command(parent, name)
    assert command is not None
    return click.Context(command, parent=parent, info_name=name, terminal_width=WIDTH, color=False)


def _section(of: click.Context) -> str:
    lines = [line.rstrip() for line in of.get_help().strip().splitlines()]
    return "\n".join([f"## {of.command_path}", "", "```text", *lines, "```", ""])


if __name__ == "__main__":
    click.echo(reference(), nl=False)
