"""`python -m upcycle.cli` is `upcycle`."""

from upcycle.cli.main import main

main()
