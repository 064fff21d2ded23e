"""`upcycle plan` and `upcycle convert`."""

import click

from upcycle import requests
from upcycle.cli.options import command, json_option
from upcycle.cli.progress import progress_bar
from upcycle.cli.tables import print_account, print_json, print_written, warn
from upcycle.pipeline import stages


@command(requests.Plan, example="upcycle plan mistralai/Mistral-7B-v0.1 --experts 8 --top-k 2")
@json_option
def plan(request: requests.Plan, as_json: bool) -> None:
    """See requests.Plan."""
    drafted = stages.plan(request)
    if as_json:
        print_json(drafted.account.as_json())
    else:
        print_account(drafted.account)
        warn(*drafted.warnings)


@command(requests.Convert, example="upcycle convert mistralai/Mistral-7B-v0.1 mixtral --experts 8 --top-k 2")
@json_option
def convert(request: requests.Convert, as_json: bool) -> None:
    """See requests.Convert."""
    if request.stream_to is None:
        with progress_bar("writing") as start:
            drafted = stages.convert(request, start)
    else:  # the Hub's client shows bars of its own
        drafted = stages.convert(request)
    if as_json:
        pushed = getattr(drafted, "pushed", None)
        place = {"pushed": pushed.as_json()} if pushed else {"out": request.out, "left": list(drafted.left)}
        print_json({**place, **drafted.account.as_json()})
    elif request.dry_run:
        print_account(drafted.account)
        click.echo(f"nothing was written; {request.stream_to or request.out} can be")
    else:
        print_written(request, drafted)
    warn(*drafted.warnings)
