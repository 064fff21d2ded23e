"""`upcycle plot`."""

import click

from upcycle import recipe
from upcycle.cli.options import command
from upcycle.pipeline import stages


@command(recipe.Plot, example="upcycle plot moe --also dense --format svg")
def plot(request: recipe.Plot) -> None:
    """See recipe.Plot."""
    for path in stages.plot(request):
        click.echo(path)
