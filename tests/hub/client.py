"""The real client in a process of its own: where the Hub is, it reads when it is imported."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hub.server import TOKEN, Hub

if TYPE_CHECKING:
    from tests.warm import User

CLEARED = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_XET", "HF_TOKEN", "HF_HUB_CACHE"}

FETCH = """
from upcycle.cli import main
from upcycle.hub.client import download
main.group.main = lambda **_: print(download({0!r}))
main.main()
"""
"""A download that ends as a command does: `convert` and `verify` begin with it."""


@dataclass
class Client:
    """A user with an empty cache."""

    hub: Hub
    home: Path
    fields: dict[str, str] = field(default_factory=dict)  # of the environment

    def with_(self, **fields: str) -> "Client":
        """Return the same user with more variables set."""
        return Client(self.hub, self.home, self.fields | fields)

    def with_token(self) -> "Client":
        return self.with_(HF_TOKEN=TOKEN)

    def start(self, *words: str, code: str = "from upcycle.cli.main import main; main()") -> "subprocess.Popen[str]":
        self.home.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
        ours = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), "NO_PROXY": "127.0.0.1,localhost"}
        return subprocess.Popen(
            [sys.executable, "-c", code, *words], env=kept | ours | self.fields, cwd=self.home,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def warm(self) -> "User":
        """Return the same user, whose commands begin with everything imported."""
        from tests.warm import User

        return User(self.hub, self.home, self.fields)

    def upcycle(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run the command line."""
        return finish(self.start(*words))

    def finish(self, *words: str, code: str) -> "subprocess.CompletedProcess[str]":
        """Run Python to its end, with the words of a command line."""
        return finish(self.start(*words, code=code))

    def fetch(self, model: str) -> "subprocess.CompletedProcess[str]":
        """Download what upcycle takes of a model."""
        return finish(self.start(code=FETCH.format(model)))

    def python(self, code: str) -> str:
        """Run Python, which must succeed; return what it prints."""
        done = finish(self.start(code=code))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def download(self, model: str, *, pickle: bool = False) -> Path:
        """Return the directory with what upcycle takes of a model."""
        return Path(
            self.python(f"from upcycle.hub.client import download; print(download({model!r}, pickle={pickle}))")[:-1]
        )

    def cached(self, pattern: str) -> list[Path]:
        """Files of the cache whose path a glob finds."""
        return sorted((self.home / "hub").glob(pattern))


def finish(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    """Wait for a process and return what it said."""
    with process:
        out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
