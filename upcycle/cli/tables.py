"""Tables for people and JSON for programs."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

import upcycle.message
from upcycle.checkpoint.strict_json import without_nan
from upcycle.plan.account import Account
from upcycle.requests import Convert, Merge

if TYPE_CHECKING:
    from upcycle.adapt.attach import Attached
    from upcycle.adapt.merge import Merged
    from upcycle.convert.convert import Draft
    from upcycle.hub.push import Pushed
    from upcycle.plan.report import Report
    from upcycle.train.loop import Trained


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


def print_written(request: Convert, drafted: "Draft") -> None:
    """Print what a conversion has written."""
    account = drafted.account
    pushed = getattr(drafted, "pushed", None)
    if pushed:
        print_pushed(pushed)
        return
    files = f"{account.files} file{'s' * (account.files > 1)}"
    left = len(drafted.left)
    if left == account.files:
        click.echo(f"{request.out}: nothing is left for part {request.part} of {files}; --max-shard-size makes more")
    elif left:
        theirs = sum(shard.size for shard in drafted.plan.shards if shard.name in drafted.left)
        click.echo(
            f"{request.out}: part {request.part} is written; {left} of {files}, {size(theirs)} of "
            f"{size(account.disk)}, left to other parts, and the last to finish puts it in place"
        )
    else:
        click.echo(
            f"{request.out}: {account.total:,} parameters, {account.active:,} active, {size(account.disk)} in {files}"
        )


def print_attached(attached: "Attached") -> None:
    """Print what an adapter is."""
    counts = attached.experts
    same = len(set(counts)) == 1
    per_layer = f"{counts[0]} experts in each of {len(counts)} layers" if same else f"experts {list(counts)}"
    share = attached.parameters / attached.base_parameters
    click.echo(
        f"{attached.out}: {per_layer + ', ' if counts else ''}{attached.parameters:,} parameters "
        f"({share:.2%} of the model's {attached.base_parameters:,}), {size(attached.nbytes)}"
    )
    for note in attached.notes:
        click.echo(f"note  {printable(note)}")


def print_merged(request: Merge, merged: "Merged") -> None:
    """Print what a merge costs, and the proof that it computes the same."""
    account = merged.account
    print_account(account, "the adapter")
    click.echo(
        f"\n{request.out}: {size(account.disk)}, of a model of {size(merged.base_bytes)} and an adapter of "
        f"{size(merged.adapter_bytes)}"
    )
    if merged.report is None:
        click.echo("nothing was written; all that can be checked before is in order")
    else:
        print_report(merged.report)


def print_trained(trained: "Trained") -> None:
    """Print what a training came to."""
    said = [f"{trained.steps:,} step{'s' * (trained.steps > 1)}"]
    tenth = " (means of the first and the last tenth of the steps)"
    for what, losses, of in (("held-out loss", trained.eval_losses, ""), ("loss", trained.losses, tenth)):
        if losses:
            said.append(f"{what} {losses[0]:.4f} -> {losses[-1]:.4f}{of}")
    click.echo(f"{trained.out}: {', '.join(said)}")


def print_pushed(pushed: "Pushed") -> None:
    """Print what a push came to: what is new on the Hub, what was there, what went, and what stayed here."""
    groups = (
        ("to upload" if pushed.dry_run else "uploaded", pushed.uploaded, f" ({size(pushed.uploaded_bytes)})"),
        ("unchanged", pushed.unchanged, ""),
        ("to remove" if pushed.dry_run else "removed", pushed.removed, ""),
        ("left here", pushed.left, ""),
    )
    for label, names, beside in groups:
        if names:
            click.echo(f"{label:<11}{listed(names)}{beside}")
    for note in pushed.notes:
        click.echo(f"note       {printable(note)}")
    kind = "private" if pushed.private else "public"
    if pushed.dry_run:
        there = f"is there, {kind}" if pushed.before else f"would be made, {kind}"
        click.echo(f"{pushed.repo}: {there}; nothing was changed; all that can be checked before is in order")
        return
    made = "" if pushed.before else f"; {kind}, made just now"
    nothing = pushed.commit is not None and not pushed.uploaded and not pushed.removed
    what = "nothing new" if nothing else f"commit {(pushed.commit or '')[:8]}"
    count = len(pushed.uploaded) + len(pushed.unchanged)
    click.echo(f"{pushed.url}: {count} files, as they are here; {what}{made}")


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return names as a list that fits on a line."""
    return printable(upcycle.message.listed(names, most))


def print_report(report: "Report") -> None:
    """Print a verification: a line per check, and the verdict."""
    for line in report.lines:
        click.echo(f"{line.verdict:<6}{line.name:<19}{printable(line.text)}")
    click.echo("verified" if report.passed else "NOT VERIFIED")
