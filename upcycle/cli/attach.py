"""`upcycle attach`."""

from upcycle import requests
from upcycle.cli.options import command
from upcycle.cli.tables import print_attached
from upcycle.pipeline import stages


@command(requests.Attach, example="upcycle attach mistralai/Mistral-7B-v0.1 adapter --experts 8 --top-k 2 --rank 16")
def attach(request: requests.Attach) -> None:
    """See requests.Attach."""
    print_attached(stages.attach(request))
