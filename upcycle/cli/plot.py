"""`upcycle plot`."""

import click

from upcycle import requests
from upcycle.cli.options import command
from upcycle.pipeline import stages


@command(requests.Plot, example="upcycle plot moe --also dense --format svg")
def plot(request: requests.Plot) -> None:
    """See requests.Plot."""
    for path in stages.plot(request):
        click.echo(path)
