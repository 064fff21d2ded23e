"""A Hub in the foreground, to try a push without an account; its repositories live in memory and die with it."""

import argparse
import contextlib
import sys
import tempfile
import threading
from pathlib import Path

from tests.hub.access import TOKEN
from tests.hub.server import serving


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1; any that is free without it")
    parser.add_argument("--dir", type=Path, help="where large files are put; a temporary directory without it")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        store = asked.dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            hub = stack.enter_context(serving(store.resolve(), asked.port))
        except OSError as error:
            parser.error(f"port {asked.port}: {error.strerror}")
        for line in (f"A Hub at {hub.url}", f"export HF_ENDPOINT={hub.url}", f"export HF_TOKEN={TOKEN}"):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
