"""Prints the result of a command: one printer for each type of result, for the command alone and in a recipe alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from upcycle.cli.tables import listed, print_account, print_json, printable, size, warn
from upcycle.requests import Convert, Merge
from upcycle.requests.request import Request, result_name

if TYPE_CHECKING:
    from upcycle.adapt.attach import Attached
    from upcycle.adapt.merge import Merged
    from upcycle.convert.candidates import Candidate
    from upcycle.convert.convert import Draft
    from upcycle.hub.push import Pushed
    from upcycle.plan.report import Report
    from upcycle.train.loop import Trained


def has_json(request: type[Request[Any]]) -> bool:
    """Whether the results of a request can be printed as JSON."""
    return PRINTERS[result_name(request)].as_json is not None


def print_result(request: Request[Any], result: Any, *, as_json: bool = False) -> None:
    """Print what carrying out `request` returned."""
    printer = PRINTERS[result_name(type(request))]
    if as_json and printer.as_json:
        print_json(printer.as_json(request, result))
    else:
        printer.text(request, result)
    warn(*getattr(result, "warnings", ()))


def print_drafted(request: Any, drafted: "Draft") -> None:
    """Print what a conversion would write, or has written."""
    if drafted.candidates:
        print_candidates(drafted.candidates)
    elif not isinstance(request, Convert):
        print_account(drafted.account)
    elif request.dry_run:
        print_account(drafted.account)
        click.echo(f"nothing was written; {request.stream_to or request.out} can be")
    elif request.stream_to is not None:
        print_pushed(request, cast("Pushed", getattr(drafted, "pushed", None)))
    else:
        print_written(request, drafted)


def print_candidates(candidates: "Sequence[Candidate]") -> None:
    """Print what a dense model can become: a line for each target, and below it what stops or limits it."""
    click.echo(
        f"{'target':<18}{'parameters':>18}{'active':>18}{'disk':>9}  {'function':<12}{'sparse layers':<28}readers"
    )
    for candidate in candidates:
        told = candidate.as_json()
        if candidate.plan is None:
            click.echo(f"{told['target']:<18}cannot: {printable(told['problem'])}")
            continue
        counts, function = told["parameters"], "the same" if told["exact"] else "near"
        click.echo(
            f"{told['target']:<18}{counts['total']:>18,}{counts['active']:>18,}{size(told['disk_bytes']):>9}  "
            f"{function:<12}{told['layers']:<28}{', '.join(told['readers'])}"
        )
        for limit in (*filter(None, [told["inexact"]]), *told["reader_limits"]):
            click.echo(f"{'':<18}{printable(limit)}")
    click.echo("\nThe first that has no `cannot` is made unless --target names another.")


def print_written(request: Convert, drafted: "Draft") -> None:
    """Print what a conversion has written."""
    account = drafted.account
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


def print_attached(_: Any, attached: "Attached") -> None:
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
        print_report(request, merged.report)


def print_trained(_: Any, trained: "Trained") -> None:
    """Print what a training came to, on the main process; the others have no losses."""
    if not trained.losses:
        return
    said = [f"{trained.steps:,} step{'s' * (trained.steps > 1)}"]
    tenth = " (means of the first and the last tenth of the steps)"
    for what, losses, of in (("held-out loss", trained.eval_losses, ""), ("loss", trained.losses, tenth)):
        if losses:
            said.append(f"{what} {losses[0]:.4f} -> {losses[-1]:.4f}{of}")
    click.echo(f"{trained.out}: {', '.join(said)}")


def print_pushed(_: Any, pushed: "Pushed") -> None:
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


def print_report(_: Any, report: "Report") -> None:
    """Print a verification: a line per check, and the verdict."""
    for line in report.lines:
        click.echo(f"{line.verdict:<6}{line.name:<19}{printable(line.text)}")
    click.echo("verified" if report.passed else "NOT VERIFIED")


def print_paths(_: Any, paths: Sequence[Path]) -> None:
    """Print the files that were written, a line each."""
    click.echo("\n".join(map(str, paths)))


def end_text(_: Any, _text: str) -> None:
    """End the line of a text that was shown while it was written."""
    click.echo()


def json_of_draft(request: Any, drafted: "Draft") -> dict[str, Any]:
    """Return a conversion as JSON data: where it is, and its account."""
    counted = drafted.account.as_json()
    if drafted.candidates:
        return {"targets": [candidate.as_json() for candidate in drafted.candidates]}
    if not isinstance(request, Convert):
        return counted
    pushed = getattr(drafted, "pushed", None)
    place = {"pushed": pushed.as_json()} if pushed else {"out": request.out, "left": list(drafted.left)}
    return {**place, **counted}


@dataclass(frozen=True, slots=True)
class Printer:
    """Prints results of one type; both take the request and the result."""

    text: Callable[[Any, Any], None]
    as_json: Callable[[Any, Any], dict[str, Any]] | None = None


PRINTERS = {
    "Draft": Printer(print_drafted, json_of_draft),
    "Report": Printer(print_report, lambda _, report: report.as_json()),
    "Attached": Printer(print_attached),
    "Trained": Printer(print_trained),
    "Merged": Printer(print_merged, lambda request, merged: {"out": request.out, **merged.as_json()}),
    "Pushed": Printer(print_pushed, lambda _, pushed: pushed.as_json()),
    "list": Printer(print_paths),
    "str": Printer(end_text),
}
"""Name of a type of results, as its request has it -> its printer; by name, since most of them import torch."""
