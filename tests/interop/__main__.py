"""Convert models, let other programs read them, and compare: one line per check.

python -m tests.interop [--only NAME]

Needs 10 GB of disk under build/interop, and the package registries the first time. Exit code 1 when a check fails or
a reader cannot be run.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# Before any library that reads them is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("UPCYCLE_CACHE", "build/cache")

from tests.interop.compare import Check
from tests.interop.environment import Environment, ReaderError
from tests.interop.readers import READERS, Reader

ROOT = Path("build/interop")


def examine(reader: Reader) -> tuple[str, Iterator[Check]]:
    """Return the reader's version and its checks; raise ReaderError when it cannot be installed or fails."""
    environment = Environment(reader.environment or reader.name, ROOT / "environments").prepare()
    directory = ROOT / "work" / reader.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    given = list(reader.pairs(directory / "models"))
    (directory / "request.json").write_text(json.dumps({"jobs": [pair.job(directory) for pair in given]}))
    environment.run(reader.script, directory)
    answer = json.loads((directory / "answer.json").read_text())
    checks = (check for pair in given for check in reader.checks(pair, answer["models"][pair.name], directory))
    return answer["version"], checks


def report(reader: Reader) -> bool:
    """Examine a reader and print its lines; return whether all is well."""
    try:
        version, found = examine(reader)
        checks = list(found)
    except ReaderError as error:
        say(f"FAIL  {reader.name:<13} not run: {error}")
        return False
    for check in checks:
        say(f"{check.verdict:<5} {reader.name} {version}  {check.model:<28} {check.what:<31} {check.figure}")
    shutil.rmtree(ROOT / "work" / reader.name)
    return bool(checks) and all(check.passed for check in checks)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the readers that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=READERS, help="one reader instead of all")
    only = parser.parse_args().only
    verdicts = [report(reader) for name, reader in READERS.items() if only in (None, name)]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
