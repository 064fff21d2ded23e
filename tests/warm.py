"""The command line in a process that has everything imported already, so that many runs of it take no minutes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hub.client import CLEARED
from tests.hub.server import Hub

FORKER = """
import json, os, runpy, signal, sys
import hf_xet, huggingface_hub.hf_api, huggingface_hub.lfs, upcycle.cli.convert, upcycle.cli.main, upcycle.cli.push
import upcycle.pipeline.stream, upcycle.plan.compute, upcycle.ship.card, upcycle.ship.fit, upcycle.ship.push
from transformers import MixtralForCausalLM

def run(words, place, environment):  # ends the process
    os.environ.update(environment)
    # read when the client is imported
    huggingface_hub.constants.HF_HUB_DISABLE_XET = "HF_HUB_DISABLE_XET" in environment
    os.chdir(place)
    for number, name in enumerate((os.devnull, "out", "err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if words[0] == "--python":
        sys.argv = words[1:]
        runpy.run_path(words[1], run_name="__main__")
        sys.exit()
    sys.argv = ["upcycle", *words]
    upcycle.cli.main.main()

for line in sys.stdin:
    asked = json.loads(line)
    if "pid" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["pid"], 0)[1]), flush=True)
    elif child := os.fork():
        print(child, flush=True)
    else:
        run(**asked)
"""


@dataclass
class Run:
    """A command that runs, or has ended."""

    warm: "Warm"
    pid: int
    place: Path

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> "subprocess.CompletedProcess[str]":
        """Wait for its end and return what it said."""
        code = self.warm.ask(pid=self.pid)
        out, err = ((self.place / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess([], code, out, err)


@dataclass
class Warm:
    """Forks commands; variables that Python reads when it is started are those of its own start."""

    forker: "subprocess.Popen[str]"

    def start(self, place: Path, *words: str, **environment: str) -> Run:
        """Start a command in the directory `place`, which also gets what it says."""
        place.mkdir(parents=True, exist_ok=True)
        return Run(self, self.ask(words=words, place=str(place), environment=environment), place)

    def ask(self, **what: object) -> int:
        assert self.forker.stdin is not None
        assert self.forker.stdout is not None
        self.forker.stdin.write(json.dumps(what) + "\n")
        self.forker.stdin.flush()
        return int(self.forker.stdout.readline())


@contextmanager
def warm(hub: Hub, home: Path) -> Iterator[Warm]:
    """Keep a process that runs commands as a user of `hub`."""
    kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
    ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", FORKER], env=kept | ours, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Warm(process)
    finally:
        process.kill()
        process.communicate()
