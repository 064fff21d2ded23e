"""`upcycle merge`."""

from upcycle import requests
from upcycle.cli.options import command, json_option
from upcycle.cli.progress import progress_bar
from upcycle.cli.tables import print_json, print_merged
from upcycle.pipeline import stages


@command(requests.Merge, example="upcycle merge trained mixtral --to full")
@json_option
def merge(request: requests.Merge, as_json: bool) -> None:
    """See requests.Merge."""
    with progress_bar("merging") as start:
        merged = stages.merge(request, start)
    if as_json:
        print_json({"out": request.out, **merged.as_json()})
    else:
        print_merged(request, merged)
