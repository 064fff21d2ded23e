"""`upcycle push`."""

from upcycle import requests
from upcycle.cli.options import command, json_option
from upcycle.cli.tables import print_json, print_pushed
from upcycle.pipeline import stages


@command(requests.Push, example="upcycle push moe my-name/my-moe --private")
@json_option
def push(request: requests.Push, as_json: bool) -> None:
    """See requests.Push."""
    pushed = stages.push(request)
    if as_json:
        print_json(pushed.as_json())
    else:
        print_pushed(pushed)
