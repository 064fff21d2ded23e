"""Verifies a conversion: rebuilds its plan, compares every tensor and file, runs both models, and reports verdicts."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from math import exp, floor, inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upcycle.build.conversion import plan_conversion
from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.reader import (
    CHAT_TEMPLATE_FILES,
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    TOKENIZER_FILES,
    Checkpoint,
    open_checkpoint,
)
from upcycle.convert.receipt import request_of
from upcycle.convert.record import Record
from upcycle.families.find import find_pairs
from upcycle.families.pairs import Pair
from upcycle.families.wrappers import language_model
from upcycle.figures import FIGURES, bound_of
from upcycle.message import listed
from upcycle.plan.compare import NAMED, compare_tensors, report_tensors
from upcycle.plan.plan import Plan
from upcycle.plan.receipt import RECORD, read_receipt
from upcycle.plan.report import Line, Report, Verdict
from upcycle.requests import Verify

if TYPE_CHECKING:
    from torch import Tensor

LAYER_TOLERANCE = 1e-4
"""Largest error of a layer's output, relative to its largest value: rounding adds up from layer to layer."""

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""Endings of files that a program might load as weights."""

READ_FILES = (
    *TOKENIZER_FILES, *CHAT_TEMPLATE_FILES, GENERATION_FILE, INDEX_FILE, "adapter_config.json", "processor_config.json",
)  # fmt: skip
"""Files beside the weights that change what a program loads."""


Start = Callable[[int], Callable[[int], None]]
"""Called with the bytes to compare; returns what is told the bytes that are done."""


def verify(dense_directory: Path, moe_directory: Path, request: Verify, start: Start) -> Report:
    """Hold the MoE in `moe_directory` against its receipt and its dense model.

    `start` is called with the bytes to compare, and returns what is told those of every tensor that is done. Raises
    InputError for checkpoints that cannot be read, and where `request.record` may not be written; StagingError when the
    disk fails. Everything else that is wrong is a line that failed.
    """
    moe, dense = open_checkpoint(moe_directory), open_checkpoint(dense_directory)
    receipt = read_receipt(moe)
    record = Record(moe_directory) if request.record else None
    plan = plan_conversion(dense, request_of(receipt, moe_directory))
    report = Report()
    _check_plan(report, plan, moe, receipt)
    _check_files(report, moe, receipt)
    advance = start(sum(write.nbytes for write in plan.writes))
    report_tensors(report, compare_tensors(plan, moe, receipt, min(8, os.cpu_count() or 1), advance), receipt)
    if report.passed and not request.tensors_only:
        _check_function(report, plan, dense, moe, request, own_tokenizer=bool(receipt[RECORD].get("tokenizer")))
    elif not request.tensors_only:
        report.lines.append(Line("models", "note", "not run: what is wrong above comes first"))
    if record:
        record.write(report)
    return report


def _check_plan(report: Report, plan: Plan, moe: Checkpoint, receipt: dict[str, Any]) -> None:
    """Check that the dense model is the one that was converted, and that the config is the plan's."""
    same_source = receipt["source"].get("files") == {name: dict(of) for name, of in plan.sources.items()}
    report.add(
        "source",
        same_source,
        "the dense model has the headers that the receipt names"
        if same_source
        else "this is not the dense model that was converted: its headers differ from the receipt's",
    )
    same_plan = receipt["plan"] == plan.hash
    by = receipt["versions"].get("upcycle")
    report.add(
        "plan",
        same_plan,
        f"{plan.hash[:16]}, rebuilt from the receipt's recipe"
        if same_plan
        else f"rebuilt as {plan.hash[:16]}; the receipt, written by upcycle {by}, says {receipt['plan'][:16]}",
    )
    found, expected = ({name: json.dumps(value) for name, value in c.items()} for c in (moe.config, plan.config))
    differing = sorted({name for name, _ in found.items() ^ expected.items()})
    report.add(
        "config",
        not differing,
        "config.json is the plan's, field by field"
        if not differing
        else f"config.json differs in {', '.join(differing)}",
    )


def _check_files(report: Report, moe: Checkpoint, receipt: dict[str, Any]) -> None:
    """Check that the files beside the weights are as they were written, and that no other weights lie there."""
    made = receipt["files"]
    beside = {name: digest for name, digest in made.items() if name not in (*moe.headers, CONFIG_FILE, INDEX_FILE)}
    changed = sorted(name for name, digest in beside.items() if not _is_as_written(moe.directory / name, digest))
    present = (path for path in moe.directory.iterdir() if path.name not in made)
    strange = sorted(path.name for path in present if path.suffix in WEIGHT_SUFFIXES or path.name in READ_FILES)
    problems = [f"{name} is not as it was written" for name in changed]
    problems += [f"{name} is not of this conversion, and a reader may load it" for name in strange]
    report.add(
        "files",
        not problems,
        listed(problems, NAMED, between="; ", cut=300) or f"{len(beside)} beside the weights, as they were written",
    )


def _is_as_written(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_of(path) == digest


def _check_function(
    report: Report, plan: Plan, dense: Checkpoint, moe: Checkpoint, request: Verify, *, own_tokenizer: bool
) -> None:
    """Run both models and report how they compare; `own_tokenizer` gives the MoE's token ids to both."""
    from upcycle.convert.parity import TOLERANCE, Parity, run_both
    from upcycle.convert.plain import report_plain
    from upcycle.text.read import random_ids, read_text, token_ids

    whole, (dense, moe) = moe, (language_model(dense), language_model(moe))
    pair = find_pairs(dense.config, moe.config["model_type"])[0]
    if not plan.exact:
        text = f"not the same ({plan.inexact}): differences below are expected"
        report.lines.append(Line("function", "note", text))
    if moe.tokenizer_files:
        text = read_text(request.text)
        ids = token_ids(moe, text, request.tokens)
        if own_tokenizer:
            report.lines.append(
                Line("tokens", "note", "those of the tokenizer that --tokenizer chose, for both models")
            )
        elif dense.tokenizer_files and not _same_tokens(report, token_ids(dense, text, request.tokens), ids):
            return
    else:
        ids = random_ids(moe.config["vocab_size"], min(request.tokens, 64))
        report.lines.append(Line("text", "note", "there is no tokenizer: the models run on random tokens"))
    parity: Parity = run_both(dense, moe, pair, ids)
    # A method that changes the function on purpose is not at fault, but the reader must see by how much.
    finite = isfinite(parity.relative) and isfinite(parity.dense_loss) and isfinite(parity.moe_loss)
    otherwise: Verdict = "FAIL" if plan.exact or not finite else "note"
    report.add(
        "logits",
        parity.same,
        f"largest error {parity.relative:.1e} of the largest logit (exact: {TOLERANCE:.0e} or less); "
        f"{parity.difference:.2e} of {parity.largest_logit:.4g}, on {parity.tokens} tokens",
        otherwise=otherwise,
    )
    agreement = floor(parity.agreement * 1e4) / 100  # 99.996 % is not all of them
    report.add(
        "top-1", parity.agreement == 1, f"the likeliest token agrees at {agreement:.2f}% of positions",
        otherwise=otherwise,
    )  # fmt: skip
    report.add(
        "loss",
        abs(parity.moe_loss - parity.dense_loss) <= TOLERANCE * max(1.0, parity.dense_loss),
        f"dense {parity.dense_loss:.6f} (perplexity {_perplexity(parity.dense_loss):.5g}), "
        f"MoE {parity.moe_loss:.6f} (perplexity {_perplexity(parity.moe_loss):.5g})",
        otherwise=otherwise,
    )
    report.lines += _layer_lines(plan, pair, parity.layers, otherwise)
    if report.passed:
        report_plain(report, whole, ids[0], parity.moe_loss)
    report.figures["parity"] = {**asdict(parity), "relative": parity.relative, "exact": plan.exact}


def _same_tokens(report: Report, dense_ids: "Tensor", moe_ids: "Tensor") -> bool:
    """Add a line when the dense model reads the text as other tokens; the class that reads a tokenizer file differs
    between model types.
    """
    same = dense_ids.shape == moe_ids.shape and bool((dense_ids == moe_ids).all())
    if not same:
        text = "transformers reads the text as other tokens for the MoE than for the dense model; see --tokenizer"
        report.add("tokens", False, text)
    return same


def _perplexity(loss: float) -> float:
    """Return exp(loss), infinite where a float ends."""
    return exp(loss) if loss < 700 else inf


def _layer_lines(plan: Plan, pair: Pair, layers: list[Any], otherwise: Verdict) -> Iterator[Line]:
    """Yield the lines on layers, routers and loads."""
    worst = max(range(len(layers)), key=lambda index: layers[index].error)
    text = f"largest error {layers[worst].error:.1e} of the layer's largest value, in layer {worst}"
    yield Line("layers", "ok" if layers[worst].error <= LAYER_TOLERANCE else otherwise, text)
    sparse = [layer for layer in layers if layer.router]
    spread, entropy, busiest = (
        _range([layer.router[name] for layer in sparse]) for name in ("logit_std", "entropy", "max_over_mean")
    )
    text = f"standard deviation {spread}, entropy {entropy} {FIGURES['entropy'].unit}"
    yield Line("router logits", "ok", text)
    dead = sum(layer.router["dead"] for layer in sparse)
    text = f"busiest expert {busiest} {FIGURES['max_over_mean'].unit}"
    if dead:
        count = plan.total_experts * len(sparse)
        text += f"; {dead} of {count} experts are dead on this text: under {bound_of('dead'):.0%} of an even share"
    yield Line("expert load", "note" if dead else "ok", text)
    yield _gradient_line(sparse, exact=plan.exact, dead=plan.active_experts == 1 and pair.target.router.renormalises)


def _gradient_line(layers: list[Any], *, exact: bool, dead: bool) -> Line:
    """Return the line on whether routers can learn; gradients that are zero by construction come out as 1e-8 or so."""
    now, after = ([getattr(layer.gradient, when) for layer in layers] for when in ("now", "after_step"))
    if dead:
        text = f"{_range(now)}, after one step {_range(after)}: one expert at weight 1, these routers never learn"
        return Line("router gradient", "note", text)
    if exact and not max(now) < 1e-3 * max(after):
        text = "the chosen experts move alike, so the router learns nothing until a balance loss moves it"
        return Line("router gradient", "note", f"{_range(now)}, after one step {_range(after)}: {text}")
    if max(now) < 1e-3 * max(after):
        text = f"{_range(now)}: zero by construction at step 0, for the experts are identical"
        return Line("router gradient", "ok", f"{text}; {_range(after)} after one step")
    return Line("router gradient", "ok", f"{_range(now)} at step 0, {_range(after)} after one step")


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
