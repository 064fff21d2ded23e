"""`upcycle push` in processes of their own, which begin with torch and transformers imported: a push each is slow."""

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from tests.hub.client import CLEARED
from tests.hub.repos import Blob, Repo
from tests.hub.server import TOKEN, Hub

ROOT = Path(__file__).parent.parent

LFS = {"HF_HUB_DISABLE_XET": "1"}
XET: dict[str, str] = {}
WAYS = {"xet": XET, "lfs": LFS}
"""How large files travel -> the variables that say so."""

UPLOADS = "PUT /upload/|POST /v1/xorbs/"
"""Requests that bring the content of large files."""

WRITES = f"{UPLOADS}|POST /v2/shards|/commit/|POST /api/repos|POST .*/branch/|POST .*/discussions"

IMPATIENT = """
import huggingface_hub.utils._http as http
import upcycle.ship.target
for function in (http.http_backoff, http.http_stream_backoff):
    defaults = getattr(function, "__wrapped__", function).__kwdefaults__
    defaults["base_wait_time"] = 0.01
    defaults["max_wait_time"] = 0.02
upcycle.ship.target.WAITS = (0, 0, 0, 0)
"""
"""All that waits before it tries again does so as often, and hardly waits."""

HASTE = {"HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2"}
"""The same for the chunk store's client, which gives up sooner."""


class Nursery:
    """A process that has imported everything and used nothing of it; its children run commands."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pushing"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, **order: Any) -> int:
        """Start a child; return its process id."""
        return self._ask(order)

    def wait(self, pid: int) -> int:
        """Wait for a child; return its exit code, of one that was killed -signal."""
        return self._ask({"wait": pid})

    def _ask(self, order: Mapping[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        with self._process as process:
            process.kill()


@cache
def nursery() -> Nursery:
    """The one of this session, ended with it."""
    import atexit

    made = Nursery()
    atexit.register(made.close)
    return made


@dataclass(frozen=True)
class Running:
    """A command that was started."""

    pid: int
    said: Path

    def finish(self) -> "subprocess.CompletedProcess[str]":
        code = nursery().wait(self.pid)
        out, err = ((self.said / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess([], code, out, err)


@dataclass(frozen=True)
class Author:
    """Who publishes: with a home and a token that writes."""

    hub: Hub
    home: Path
    fields: Mapping[str, str] = field(default_factory=lambda: {"HF_TOKEN": TOKEN})  # of the environment
    prelude: str = ""  # Python that runs first

    def with_(self, **fields: str) -> "Author":
        """Return the same with more variables set."""
        return replace(self, fields={**self.fields, **fields})

    def impatient(self) -> "Author":
        """Return the same, who hardly waits before another attempt."""
        return replace(self.with_(**HASTE), prelude=IMPATIENT)

    def start(self, *words: str | Path, code: str = "from upcycle.cli.main import main; main()") -> Running:
        said = self.home / "said" / str(len(list((self.home / "said").glob("*"))))
        said.mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
        ours = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), "NO_PROXY": "127.0.0.1,localhost"}
        pid = nursery().start(
            words=[str(word) for word in words], code=self.prelude + code, fields={**kept, **ours, **self.fields},
            home=str(self.home), said=str(said),
        )  # fmt: skip
        return Running(pid, said)

    def upcycle(self, *words: str | Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run the command line, which must end with an exit code."""
        done = self.start(*words).finish()
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr or "--debug" in words
        return done

    def push(self, directory: Path, repo: str, *words: str) -> dict[str, Any]:
        """Push, which must succeed in silence; return what it tells."""
        done = self.upcycle("push", directory, repo, *words, "--json")
        assert done.stderr == ""
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def refused(self, directory: Path, repo: str, *words: str, code: int = 2) -> str:
        """Push, which must fail; return the one line that says why."""
        done = self.upcycle("push", directory, repo, *words, code=code)
        *_, line = done.stderr.splitlines()
        assert done.stdout == ""
        assert line.startswith("upcycle: error: ")
        return line.removeprefix("upcycle: error: ")

    def python(self, code: str) -> str:
        """Run Python, which must succeed; return what it prints."""
        done = self.start(code=code).finish()
        assert done.returncode == 0, done.stderr
        return done.stdout


def held(repo: Repo, revision: str = "main") -> dict[str, Blob]:
    """The files of a branch, but for what the Hub puts into every repository."""
    commit = repo.find(revision)
    assert commit is not None
    return {path: blob for path, blob in commit.files.items() if path != ".gitattributes"}


def content(repo: Repo, path: str, revision: str = "main") -> bytes:
    """The bytes of a file on a branch."""
    blob = held(repo, revision)[path]
    return blob.read(0, blob.size)


def same(repo: Repo, directory: Path, revision: str = "main") -> bool:
    """Whether a branch holds the files of a directory, byte by byte, and a card."""
    there = {path: content(repo, path, revision) for path in held(repo, revision)}
    return there == {path.name: path.read_bytes() for path in directory.iterdir()} | {"README.md": there["README.md"]}


def main() -> None:
    """Serve orders, one a line: start a child, or wait for one."""
    for name in ("upcycle.ship.fit", "upcycle.pipeline.publish", "upcycle.cli.push", "upcycle.ship.card"):
        importlib.import_module(name)
    from transformers import LlamaForCausalLM, MixtralForCausalLM  # noqa: F401  # lazily imported ones

    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            told = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            told = os.fork()
            if told == 0:
                _become(**order)
        sys.stdout.write(f"{told}\n")
        sys.stdout.flush()


def _become(words: list[str], code: str, fields: dict[str, str], home: str, said: str) -> NoReturn:
    """Run a command as its user; the client reads anew what it takes from the environment when it is imported."""
    os.environ.clear()
    os.environ.update(fields)
    os.chdir(home)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate((os.devnull, f"{said}/out", f"{said}/err")):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    from huggingface_hub import constants

    importlib.reload(constants)
    sys.argv = ["upcycle", *words]
    ended = 1
    try:
        exec(code, {"__name__": "__main__"})
        ended = 0
    except SystemExit as stop:
        ended = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(ended)  # taking apart what was imported is slow


if __name__ == "__main__":
    main()
