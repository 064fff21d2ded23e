"""`upcycle demo`: the packaged recipe `demo`, in a directory that goes at the end."""

import json
import tempfile
from pathlib import Path

import click

from upcycle.cli.options import GroupedCommand
from upcycle.cli.recipes import carry_out


@click.command(cls=GroupedCommand)
@click.option("--model", default="demo:tiny", show_default=True, help="Dense checkpoint; the default is built in.")
@click.option("--out", metavar="DIR", help="Keep the mixture of experts here; by default it is removed at the end.")
@click.option(
    "--prompt", default="Thus saith the LORD", show_default=True, help="Beginning of a text that the result continues."
)
def demo(model: str, out: str | None, prompt: str) -> None:
    """Go the whole way in about a minute: plan, convert, verify, and let the result write.

    This is the packaged recipe `demo`, with the model, the directory and the prompt put in.
    """
    with tempfile.TemporaryDirectory(prefix="upcycle-demo-") as scratch:
        directory = out or str(Path(scratch) / "moe")
        values = {"plan.model": model, "convert.model": model, "convert.out": directory, "generate.prompt": prompt}
        overrides = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
        carry_out("demo", overrides, dry_run=False, remember=False)
        click.echo(f"\nthe mixture of experts is in {out}" if out else "\n--out DIR keeps the mixture of experts")


demo.groups = {}
demo.example = "upcycle demo --out upcycle-demo"
