"""`upcycle verify`."""

import click

from upcycle import requests
from upcycle.cli.options import command, json_option
from upcycle.cli.progress import progress_bar
from upcycle.cli.tables import print_json, print_report
from upcycle.pipeline import stages


@command(requests.Verify, example="upcycle verify mistralai/Mistral-7B-v0.1 mixtral")
@json_option
def verify(request: requests.Verify, as_json: bool) -> None:
    """See requests.Verify."""
    with progress_bar("comparing") as start:
        report = stages.verify(request, start)
    if as_json:
        print_json(report.as_json())
    else:
        print_report(report)
    if not report.passed:
        raise click.exceptions.Exit(1)
