"""`upcycle generate`."""

import click

from upcycle import recipe
from upcycle.cli.options import command
from upcycle.pipeline import stages


@command(recipe.Generate, example='upcycle generate mixtral "The capital of France is"')
def generate(request: recipe.Generate) -> None:
    """See recipe.Generate."""
    stages.generate(request, lambda piece: click.echo(piece, nl=False))
    click.echo()
