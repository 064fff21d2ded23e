"""The commands of upcycle, one row each: the command line, recipes, their schema and `upcycle.run` are made from them.

A new command is a request, a function that carries it out, and a row here. A new type of result also needs a printer in
`upcycle.cli.show`.
"""

from typing import Any

from upcycle.errors import RequestError
from upcycle.requests.attach import Attach as Attach
from upcycle.requests.command import Command
from upcycle.requests.conversion import Convert as Convert
from upcycle.requests.conversion import Plan as Plan
from upcycle.requests.conversion import Verify as Verify
from upcycle.requests.generate import Generate as Generate
from upcycle.requests.merge import Merge as Merge
from upcycle.requests.plot import Plot as Plot
from upcycle.requests.push import Push as Push
from upcycle.requests.request import Request
from upcycle.requests.train import Train as Train

_ROWS = (
    Command(
        "plan", Plan, "upcycle.pipeline.stages:plan",
        example="upcycle plan mistralai/Mistral-7B-v0.1 --experts 8 --top-k 2",
        reads=("model", "tokenizer"), texts=("chat_template",),
    ),
    Command(
        "convert", Convert, "upcycle.pipeline.stages:convert",
        example="upcycle convert mistralai/Mistral-7B-v0.1 mixtral --experts 8 --top-k 2",
        reads=("model", "tokenizer"), texts=("chat_template",),
        gives={"dense": "model", "moe": "out", "model": "out"}, remembers=True, publishes="stream_to",
        reports="bytes", doing="writing",
    ),
    Command(
        "verify", Verify, "upcycle.pipeline.stages:verify",
        example="upcycle verify mistralai/Mistral-7B-v0.1 mixtral",
        reads=("dense", "moe"), texts=("text",), remembers=True, reports="bytes", doing="comparing",
    ),
    Command(
        "attach", Attach, "upcycle.pipeline.stages:attach",
        example="upcycle attach mistralai/Mistral-7B-v0.1 adapter --experts 8 --top-k 2 --rank 16",
        reads=("model", "from_lora"), gives={"dense": "model", "adapter": "out", "model": "out"}, remembers=True,
    ),
    Command(
        "train", Train, "upcycle.pipeline.stages:train",
        example="upcycle train mixtral trained --data book.txt --eval-split 0.01 --max-steps 300",
        reads=("model", "base"), texts=("data", "eval_data"),
        gives={"adapter": "out", "model": "out", "metrics": "out"}, remembers=True, reports="steps",
    ),
    Command(
        "merge", Merge, "upcycle.pipeline.stages:merge",
        example="upcycle merge trained mixtral --to full",
        reads=("adapter", "base"), texts=("text",), gives={"model": "out"}, remembers=True,
        reports="bytes", doing="merging",
    ),
    Command(
        "plot", Plot, "upcycle.analyze.plot:plot",
        example="upcycle plot moe --also dense --format svg",
        reads=("metrics", "also"), remembers=True,
    ),
    Command(
        "generate", Generate, "upcycle.pipeline.stages:generate",
        example='upcycle generate mixtral "The capital of France is"',
        reads=("model", "base"), reports="text",
    ),
    Command(
        "push", Push, "upcycle.pipeline.publish:push",
        example="upcycle push moe my-name/my-moe --private",
        reads=("model", "base"), publishes="repo",
    ),
)  # fmt: skip

COMMANDS: dict[str, Command] = {row.name: row for row in _ROWS}
"""The commands by name, in the order of a first use."""


def command_of(request: Request[Any]) -> Command:
    """Return the command whose request this is."""
    found = next((row for row in COMMANDS.values() if row.request is type(request)), None)
    if found is None:
        names = ", ".join(row.request.__name__ for row in COMMANDS.values())
        raise RequestError("is no request", found=type(request).__name__, expected=f"one of {names}")
    return found
