"""An environment of a peer's own: what it needs must not decide what upcycle is measured with."""

import subprocess
import sys
from pathlib import Path

STAMP = ".installed"
"""A copy of the requirements that are installed; made last, so that an interrupted installation is done again."""


def command(environment: Path, requirements: Path, name: str) -> str | None:
    """Return the command `name` of `environment`, installed there if it is not yet; None when pip cannot do it.

    What pip has to say goes to the terminal and not into the results: it names hosts and paths of this machine.
    """
    stamp, wanted = environment / STAMP, requirements.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        python = environment / "bin" / "python"
        make = [sys.executable, "-m", "venv", "--clear", str(environment)]
        install = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)]
        if any(subprocess.run(argv, check=False).returncode for argv in (make, install)):
            return None
        stamp.write_text(wanted, encoding="utf-8")
    return str(environment / "bin" / name)
