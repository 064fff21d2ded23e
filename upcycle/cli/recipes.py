"""`upcycle run`: reads a recipe, carries it out and prints each step and its result."""

from collections.abc import Sequence
from typing import Any

import click

from upcycle.cli.options import GroupedCommand, HelpfulArgument
from upcycle.cli.progress import Terminal
from upcycle.cli.show import print_result
from upcycle.cli.tables import print_account, print_json, warn


@click.command(cls=GroupedCommand, no_args_is_help=True)
@click.argument("recipe", cls=HelpfulArgument, required=False, help="A recipe file, or the name of a packaged recipe.")
@click.option(
    "--set", "overrides", multiple=True, metavar="STEP.FIELD=VALUE",
    help="Change an option of a step, such as convert.experts=8, or convert.0.experts=8 for the first of several "
    "(repeat for more).",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check everything and print the steps; write nothing.")
@click.option("--again", is_flag=True, help="Do all steps, also those that were done before and are unchanged.")
@click.option("--list", "listing", is_flag=True, help="List the packaged recipes.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of recipes, for editors.")
def run(
    recipe: str | None, overrides: tuple[str, ...], dry_run: bool, again: bool, listing: bool, schema: bool
) -> None:
    """Carry out a YAML recipe, which chains commands.

    A step is a command and its options. A step that leaves out `model`, `dense`, `moe`, `adapter` or `metrics` takes it
    from the last step before it that made one. A verification that fails ends the recipe.

    A step whose options, inputs and outputs are those of an earlier run is skipped, and one that was interrupted is
    continued; .upcycle in the current directory remembers them. Steps that print or publish are never skipped.
    """
    if schema or listing:
        return _print_schema() if schema else _print_list()
    if recipe is None:
        raise click.UsageError("Missing argument 'RECIPE'.")
    return carry_out(recipe, overrides, dry_run=dry_run, again=again)


run.groups = {"recipe": "Arguments"}
run.example = "upcycle run smollm2-4x135m --set convert.experts=8 --dry-run"


def carry_out(
    recipe: str, overrides: Sequence[str], *, dry_run: bool, again: bool = False, remember: bool = True
) -> None:
    """Carry out a recipe, given by path or name, and print what happens; see `upcycle.pipeline.run` for what it raises.

    With `remember`, steps that are done are skipped, unless `again` is set, and those that end now are remembered.
    Raises RequestError for a recipe or an override that makes no sense.
    """
    from upcycle.pipeline import run as runner
    from upcycle.pipeline.done import remembered
    from upcycle.pipeline.steps import find_recipe, read_recipe

    chain = read_recipe(find_recipe(recipe), overrides)
    click.echo(f"{chain.name}: {chain.description}")
    done = remembered(chain.name, again=again) if remember else None
    (runner.rehearse if dry_run else runner.run)(chain, _Steps(dry_run), done)


class _Steps(Terminal):
    """Prints the steps of a recipe as they are carried out, each result as the command by itself does."""

    def __init__(self, dry_run: bool) -> None:
        self._dry_run = dry_run

    def begin(self, number: int, count: int, request: Any) -> None:
        from upcycle.pipeline.steps import command_line

        click.echo(f"\n[{number}/{count}] {command_line(request)}")

    def end(self, request: Any, result: Any) -> None:
        from upcycle.pipeline.run import SKIPPED

        if result is SKIPPED:
            click.echo("unchanged, skipped")
        elif not self._dry_run:
            print_result(request, result)
        elif result is None:
            click.echo(f"no figures: {request.model} {_why_no_figures(request.model)}")
        else:
            print_account(result.account)
            warn(*result.warnings)


def _why_no_figures(model: str) -> str:
    if model.endswith(".gguf"):
        return "has to be dequantised first; `upcycle plan` does that and counts"
    return "is not here yet: an earlier step makes it, or it is downloaded"


def _print_schema() -> None:
    from upcycle.pipeline.schema import recipe_schema

    print_json(recipe_schema())


def _print_list() -> None:
    from upcycle.pipeline.steps import packaged, read_recipe

    known = packaged()
    for name, path in known.items():
        click.echo(f"{name:<{max(map(len, known)) + 2}}{read_recipe(path).description}")
