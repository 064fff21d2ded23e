"""Commands in processes of their own, which begin with everything imported: to import it takes seconds each time."""

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NoReturn, Self

from tests.hub.access import TOKEN
from tests.hub.client import CLEARED
from tests.hub.hub import Hub

ROOT = Path(__file__).parent.parent

MODULES = (
    "peft", "transformers.models.llama.modeling_llama", "transformers.models.mixtral.modeling_mixtral",
    "upcycle.cli.main", "upcycle.cli.progress", "upcycle.pipeline.publish",
    "upcycle.pipeline.stages", "upcycle.pipeline.stream", "upcycle.plan.compute", "upcycle.card", "upcycle.moe.fit",
)  # fmt: skip

COMMAND_LINE = "from upcycle.cli.main import main; main()"


@dataclass(frozen=True)
class Run:
    """A command that was started."""

    pid: int
    said: Path

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def finish(self) -> "subprocess.CompletedProcess[str]":
        """Wait for its end; return what it said, and its exit code: of one that was killed -signal."""
        code = _ask(wait=self.pid)
        out, err = ((self.said / name).read_text() for name in ("out", "err"))
        assert TOKEN not in out + err
        return subprocess.CompletedProcess([], code, out, err)


@dataclass(frozen=True)
class User:
    """Who runs commands: with a home, which has the client's caches in it."""

    hub: Hub
    home: Path
    fields: Mapping[str, str] = field(default_factory=dict)  # of the environment

    def with_(self, **fields: str) -> Self:
        """Return the same with more variables set."""
        return replace(self, fields={**self.fields, **fields})

    def start(self, *words: str | Path, code: str = COMMAND_LINE) -> Run:
        """Start a command line, or Python with the words of one."""
        said = self.home / "said" / str(len(list((self.home / "said").glob("*"))))
        said.mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
        ours = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), "NO_PROXY": "127.0.0.1,localhost"}
        pid = _ask(
            words=[str(word) for word in words], code=code, fields={**kept, **ours, **self.fields},
            home=str(self.home), said=str(said),
        )  # fmt: skip
        return Run(pid, said)

    def run(self, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        """Run a command line to its end."""
        return self.start(*words).finish()

    def python(self, code: str) -> str:
        """Run Python, which must succeed; return what it prints."""
        done = self.start(code=code).finish()
        assert done.returncode == 0, done.stderr
        return done.stdout


@cache
def _nursery() -> "subprocess.Popen[str]":
    """The process that has imported everything and used nothing of it; it ends with this one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm"], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    atexit.register(process.communicate)
    atexit.register(process.kill)
    return process


def _ask(**order: object) -> int:
    """Have a child started, whose process id is returned, or waited for, whose exit code is."""
    process = _nursery()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def main() -> None:
    """Serve orders, one a line."""
    for name in MODULES:
        importlib.import_module(name)
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
    from huggingface_hub import constants, hf_api

    importlib.reload(constants)
    hf_api.api.endpoint = constants.ENDPOINT
    sys.argv = ["upcycle", *words]
    ended = 1
    try:
        exec(code, {"__name__": "__main__"})
        ended = 0
    except SystemExit as stop:
        ended = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    # What Python does at the end, but for taking apart what was imported, which takes a second.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(ended)


if __name__ == "__main__":
    main()
