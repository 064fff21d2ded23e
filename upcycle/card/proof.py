"""What was shown of an output: whether it computes what the dense model does, by which record, and how to check it."""

from collections.abc import Iterator, Mapping
from math import exp
from typing import Any

from upcycle.card.facts import Facts
from upcycle.card.markdown import fenced, plain, table
from upcycle.card.recipe import DENSE
from upcycle.card.values import mapping, origin, real, whole
from upcycle.checkpoint.adapter import EXPERTS

_SHOWN = ("tensors", "finite")
"""Lines of a verification that are told in its own words; what the models compute is told in figures."""
_MAX_LINES = 40

_WITH_WEIGHTS = (
    "The SHA-256 of every file of weights was recorded with it, and `upcycle push` publishes no others: the files here "
    "are those that were verified."
)
_WITHOUT_WEIGHTS = "Which bytes the files of weights had then was not recorded."


def proof(facts: Facts, repo_id: str) -> str | None:
    """Return what is known of it, as markdown; None where no record says anything."""
    merge, conversion = facts.last("merge"), facts.last("conversion")
    if merge:
        parts = list(_of_merge(facts, merge))
    elif conversion and facts.kind == "model":
        parts = list(_of_conversion(facts, conversion, repo_id))
    elif facts.kind == "adapter" and facts.last("adapter"):
        parts = list(_of_adapter(facts))
    else:
        parts = list(_of_others(facts))
    return "\n\n".join(parts) or None


def _of_others(facts: Facts) -> Iterator[str]:
    if facts.trainings:
        yield "No: it was trained, and computes something else than what it was made from."


def _of_adapter(facts: Facts) -> Iterator[str]:
    if facts.trainings:
        yield "No: the adapter was trained. Without it, the model below it computes what it always did."
    elif mapping(mapping(facts.last("adapter")).get("recipe")).get("from_lora"):
        yield "No: it has the updates of the LoRAs that its experts are. Without it, the model below it is as it was."
    else:
        kind = "experts add" if facts.config.get("peft_type") == EXPERTS else "update adds"
        yield (
            f"Yes, until it is trained: the {kind} nothing at the start, so that the model computes what it did, bit "
            "for bit."
        )


def _of_merge(facts: Facts, merge: Mapping[str, Any]) -> Iterator[str]:
    later = facts.lineage[facts.lineage.index(merge) :]
    if any(entry.get("made") == "training" for entry in later):
        yield "No: it was trained after it was merged."
    else:
        yield (
            "It computes what the adapter did on the dense model: `upcycle merge` gives an output its name only after "
            "plain transformers, in a process of its own, has come to the adapter's logits within 1e-5 of the largest, "
            "and to the same text. Of weights that are rounded, as to bfloat16, that is shown before they are rounded."
        )
        if facts.trainings:
            yield "The adapter was trained, so this is not what the dense model computes."
    yield table(("record", ""), _record(merge))


def _of_conversion(facts: Facts, conversion: Mapping[str, Any], repo_id: str) -> Iterator[str]:
    trained = bool(facts.trainings)
    exact = conversion.get("exact") is True
    if trained:
        yield _after_training(facts, exact)
    start = "The conversion was exact, by construction" if trained else "Yes, by construction"
    if exact:
        yield f"{start}: the weights of the chosen experts sum to one, and the experts are identical."
    else:
        start = "The conversion was not exact" if trained else "No"
        yield f"{start}: noise on the experts, or rounding to another data type, changes the function on purpose."
    yield from _verification(facts, exact)
    yield table(("record", ""), _record(conversion))
    if not trained:
        name, called = repo_id.rpartition("/")[2], origin(conversion)[2]
        fill_in = f", with the directory of the dense model {plain(called or '')} in the place of `{DENSE}`"
        yield f"To check it yourself{'' if facts.dense else fill_in}:"
        lines = (
            "pip install upcycle", f"hf download {repo_id} --local-dir {name}",
            f"upcycle verify {facts.dense or DENSE} {name}",
        )  # fmt: skip
        yield fenced("bash", "\n".join(lines))


def _after_training(facts: Facts, exact: bool) -> str:
    """Return what training has changed; routers choose among experts, and while those are the same that is nothing."""
    if exact and facts.has_copies:
        return (
            "Yes, up to rounding: only its routers were trained, and which of the experts they choose makes no "
            "difference as long as those are identical. What follows is of its start."
        )
    return "No: it was trained, and no longer computes what the dense model does. What follows is of its start."


def _verification(facts: Facts, exact: bool) -> Iterator[str]:
    entry = facts.last("verification")
    if entry is None:
        yield "**That was not verified** by `upcycle verify --record`: no figures are here to show it."
        return
    passed = entry.get("passed") is True
    meaning = (
        "" if exact or not passed else " (every tensor is as the recipe says; how far the function moved is below)"
    )
    verdict = "passed" if passed else "did not pass"
    yield f"`upcycle verify` held the conversion against the dense model, and it **{verdict}**{meaning}:"
    yield table(("verification", ""), [*_measured(mapping(entry.get("parity"))), *_lines(entry, passed)])
    if facts.untrained_conversion:
        yield _WITH_WEIGHTS if mapping(entry.get("weights")) else _WITHOUT_WEIGHTS


def _measured(parity: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what both models gave on one text."""
    tokens, difference, relative = (
        whole(parity.get("tokens")),
        real(parity.get("difference")),
        real(parity.get("relative")),
    )
    agreement, dense, moe = (real(parity.get(name)) for name in ("agreement", "dense_loss", "moe_loss"))
    if difference is not None and relative is not None:
        on = f", on {tokens:,} tokens" if tokens else ""
        yield "largest difference of a logit", f"{difference:.2e}, {relative:.1e} of the largest logit{on}"
    if agreement is not None:
        shown = agreement if agreement >= 1 else min(agreement, 0.9999)  # what is not all is not rounded to all
        yield "the same likeliest token", f"at {shown:.2%} of positions"
    if dense is not None:
        yield "loss of the dense model", loss_text(dense)
    if moe is not None:
        yield "loss of the mixture of experts", loss_text(moe)


def _lines(entry: Mapping[str, Any], passed: bool) -> Iterator[tuple[str, str]]:
    """Yield lines of the report: those that are no figures, and all that failed."""
    lines = entry.get("lines")
    for line in map(mapping, lines[:_MAX_LINES]) if isinstance(lines, list) else ():
        failed = not passed and line.get("verdict") == "FAIL"
        if failed or line.get("name") in _SHOWN:
            yield f"{'FAILED: ' if failed else ''}{plain(line.get('name'), 40)}", plain(line.get("text"), 300)


def _record(entry: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield rows of a receipt."""
    source, recipe = mapping(entry.get("source")), mapping(entry.get("recipe"))
    revision, seed = source.get("revision"), whole(recipe.get("seed"))
    yield "plan", f"`{_hexadecimal(entry.get('plan'))}`" if _hexadecimal(entry.get("plan")) else None
    yield "source", plain(source["name"], 100) if isinstance(source.get("name"), str) else None
    yield "its commit", plain(revision, 64) if isinstance(revision, str) else None
    yield "seed", None if seed is None else str(seed)


def _hexadecimal(value: object) -> str | None:
    good = isinstance(value, str) and len(value) <= 64 and set(value) <= set("0123456789abcdef")
    return str(value) if value and good else None


def loss_text(loss: float) -> str:
    """Return a loss in nats and its perplexity."""
    return f"{loss:.4f} (perplexity {exp(loss):.5g})" if abs(loss) < 100 else f"{loss:.4g}"
