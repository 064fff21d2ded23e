"""Text for people and JSON for programs: the table of a plan, sizes, lists of names, warnings."""

import json
from collections.abc import Sequence
from typing import Any

import click

import upcycle.message
from upcycle.checkpoint.strict_json import without_nan
from upcycle.plan.account import Account


def print_json(value: Any) -> None:
    """Print `value` as indented JSON; NaN and infinity, which JSON lacks, become null."""
    click.echo(json.dumps(without_nan(value), indent=2))


def warn(*messages: str) -> None:
    """Print warnings on stderr, a line each."""
    for message in messages:
        click.echo(f"upcycle: warning: {message}", err=True)


def printable(text: str) -> str:
    """Return `text` as a terminal shows it: what comes out of files is no command to it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def size(nbytes: float) -> str:
    """Return bytes in decimal units, three digits: `93.4 GB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while nbytes >= 999.5 and len(units) > 1:
        nbytes /= 1000
        del units[0]
    return f"{nbytes:.3g} {units[0]}"


def print_account(account: Account, of: str = "the dense model") -> None:
    """Print what a plan amounts to: a line per part, then memory, paths and the plan's hash.

    `of` is whose function the output has.
    """
    click.echo(f"{'part':<11}{'tensors':>9}{'parameters':>19}{'active':>19}{'bytes':>21}")
    for part in account.parts:
        click.echo(f"{part.role:<11}{part.tensors:>9,}{part.parameters:>19,}{part.active:>19,}{part.nbytes:>21,}")
    tensors, nbytes = (sum(values) for values in zip(*((p.tensors, p.nbytes) for p in account.parts), strict=True))
    click.echo(f"{'total':<11}{tensors:>9,}{account.total:>19,}{account.active:>19,}{nbytes:>21,}\n")
    choices, layers = account.paths
    per_layer = f"{choices:,}" if choices < 10**9 else f"10^{account.paths_log10 / layers:.1f}"
    files = f"{account.files} file{'s' * (account.files > 1)}"
    rows = (
        (
            "disk",
            f"{size(account.disk)} in {files}; {size(account.computed)} computed, the rest copied",
        ),
        ("to convert", f"about {size(account.convert_memory)} of memory"),
        ("to run", f"about {size(account.run_memory)}: weights and the cache of {account.cache_tokens:,} tokens"),
        ("to train", f"about {size(account.train_full_memory)} in full, {size(account.train_lora_memory)} by LoRA"),
        ("expert paths", f"{per_layer} choices in each of {layers} layers: 10^{account.paths_log10:.1f}"),
        ("function", f"the same as {of}'s" if account.exact else f"near {of}'s, not the same"),
        ("plan", account.plan_hash[:16]),
        *(("readers", text) for text in account.reader_limits),
    )
    for label, text in rows:
        click.echo(f"{label:<14}{text}")


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return names as a list that fits on a line."""
    return printable(upcycle.message.listed(names, most))
