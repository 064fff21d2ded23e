"""`upcycle generate`."""

import click

from upcycle import requests
from upcycle.cli.options import command
from upcycle.pipeline import stages


@command(requests.Generate, example='upcycle generate mixtral "The capital of France is"')
def generate(request: requests.Generate) -> None:
    """See requests.Generate."""
    stages.generate(request, lambda piece: click.echo(piece, nl=False))
    click.echo()
