"""`upcycle train`."""

from upcycle import requests
from upcycle.cli.options import command
from upcycle.cli.tables import print_trained
from upcycle.pipeline import stages


@command(requests.Train, example="upcycle train mixtral trained --data book.txt --eval-split 0.01 --max-steps 300")
def train(request: requests.Train) -> None:
    """See requests.Train."""
    from upcycle.cli.panel import Panel

    with Panel() as panel:
        trained = stages.train(request, panel)
    if trained.losses:  # on the main process
        print_trained(trained)
