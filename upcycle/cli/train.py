"""`upcycle train`."""

from upcycle import recipe
from upcycle.cli.options import command
from upcycle.cli.tables import print_trained
from upcycle.pipeline import stages


@command(recipe.Train, example="upcycle train mixtral trained --data book.txt --eval-split 0.01 --max-steps 300")
def train(request: recipe.Train) -> None:
    """See recipe.Train."""
    from upcycle.cli.panel import Panel

    with Panel() as panel:
        trained = stages.train(request, panel)
    if trained.losses:  # on the main process
        print_trained(trained)
