"""A reader's environment: made once from its requirements file, and kept while the file stays the same."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


class ReaderError(Exception):
    """A reader that could not be installed or started; the message says why, in one line."""


class Environment:
    """A virtual environment with one reader in it."""

    def __init__(self, name: str, root: Path) -> None:
        """Name the environment; `root / name` is its directory, `NAME.txt` beside this file what it holds."""
        self.name = name
        self.directory = root / name
        self.requirements = HERE / f"{name}.txt"

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.directory / "bin" / "python"

    def prepare(self) -> "Environment":
        """Install the requirements unless exactly they are installed; raise ReaderError when that fails."""
        stamp = self.directory / "requirements.txt"
        wanted = self.requirements.read_text()
        if stamp.exists() and stamp.read_text() == wanted:
            return self
        shutil.rmtree(self.directory, ignore_errors=True)
        self._call([sys.executable, "-m", "venv", str(self.directory)])
        self._call([str(self.python), "-m", "pip", "install", "--quiet", "--requirement", str(self.requirements)])
        stamp.write_text(wanted)  # last: an installation that was cut short is made again
        return self

    def run(self, script: str, directory: Path) -> None:
        """Run a script of this package on `directory`; raise ReaderError with its last line when it fails."""
        # -P: the modules of this package must not be found under the names of installed ones
        self._call([str(self.python), "-P", str(HERE / script), str(directory)])

    def _call(self, argv: list[str]) -> None:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace")
        log = self.directory.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{' '.join(argv)}\n{done.stdout}\n{done.stderr}")
        if done.returncode:
            # programs that log to the same stream may have the last word: prefer the line that names an exception
            lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
            named = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|ERROR)\b", line)]
            raise ReaderError(f"{(named or lines)[-1][:160]} (see {log})")
