"""Proves a merge: plain transformers reads the output in a process of its own, and must compute what the adapter does.

Both run in float32, as many of their first layers as fit into memory; the tensors of all layers are compared with what
they are made from. Shapes: T tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf, isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from upcycle.adapt.changes import report_experts
from upcycle.adapt.depth import cut_adapter, write_layers
from upcycle.adapt.draft import Draft
from upcycle.adapt.rounding import own_rounding, tolerance
from upcycle.adapters.load import attached
from upcycle.checkpoint.adapter import Adapter, open_adapter
from upcycle.checkpoint.reader import Checkpoint, open_checkpoint
from upcycle.errors import UpcycleError
from upcycle.moe import reread
from upcycle.moe.clean_run import CleanRun, run_clean
from upcycle.moe.memory import (
    FLOAT_BYTES,
    LOGITS_HELD,
    available_memory,
    gigabytes,
    give_back,
    layers_that_fit,
    memory_needed,
)
from upcycle.plan.compare import compare_tensors, report_tensors
from upcycle.plan.dtypes import DTYPE_WORDS
from upcycle.plan.make import worker_count
from upcycle.plan.receipt import read_receipt
from upcycle.plan.report import Line, Report
from upcycle.plan.sources import Fold
from upcycle.requests.merge import Merge
from upcycle.text.read import random_ids, read_text, token_ids

PROMPT, NEW_TOKENS = 16, 24
"""Tokens that both models go on from, and the tokens that they write."""

RANDOM_TOKENS = 64
"""At most, of a model without a tokenizer."""


@dataclass(frozen=True)
class AdapterRun:
    """What the base with its adapter computes in float32."""

    logits_TV: Tensor
    tokens: list[int]  # the likeliest ones that follow the prompt
    margins: list[float]  # by how much each was ahead of the second
    rounding: float  # what rounding alone changes in a logit, relative to the largest

    @property
    def largest(self) -> float:
        """The largest logit."""
        return max(float(self.logits_TV.abs().max()), 1e-30)

    @property
    def tolerance(self) -> float:
        """Difference relative to the largest logit up to which a merge is right."""
        return tolerance(self.rounding)


def prove(draft: Draft, wide: Draft, base: Checkpoint, adapter: Path, output: Path, request: Merge) -> Report:
    """Return what holds of the checkpoint in `output`; raise UpcycleError when transformers cannot even run it.

    Every tensor is held against its recipe; so many of the first layers are run as fit into memory. Where `output` is
    rounded, it is the same plan in float32, `wide`, that must compute what the adapter does, and by how much rounding
    changes that is told.
    """
    report, made = Report(), open_checkpoint(output)
    receipt = read_receipt(made)
    report_tensors(report, compare_tensors(draft.plan, made, receipt, worker_count(), lambda _: None), receipt)
    if report.passed:  # else a tensor of an expert may not even be there
        report_experts(report, draft, made)
    if not report.passed:
        report.lines.append(Line("models", "note", "not run: what is wrong above comes first"))
        return report
    reader = _with_tokenizer(base, adapter)
    text = read_text(request.text) if reader else None
    if reader and text:
        ids_T = token_ids(reader, text, request.tokens)[0]
    else:
        ids_T = random_ids(base.config["vocab_size"], min(request.tokens, RANDOM_TOKENS))[0]
    layers = _report_depth(report, draft, base, open_adapter(adapter), len(ids_T), request.proof_layers)
    if layers:
        _report_models(report, draft, wide, (base.directory, adapter, output), layers, ids_T, text)
    return report


def _report_depth(report: Report, draft: Draft, base: Checkpoint, adapter: Adapter, tokens: int, asked: int) -> int:
    """Return how many first layers are run: those asked for, else as many as fit; say so unless it is all of them."""
    layers = draft.plan.layers
    ours = {spec.name: spec.elements for spec in (*base.tensors.values(), *adapter.tensors.values())}
    theirs = {write.name: write.elements for write in draft.plan.writes}
    beside = LOGITS_HELD * FLOAT_BYTES * tokens * base.config["vocab_size"]
    available = available_memory()
    count = min(asked, layers) or layers_that_fit((ours, theirs), layers, beside, available)
    if count == 0:
        needed = max(memory_needed(model.items(), 1, beside) for model in (ours, theirs))
        text = (
            f"not run: one layer takes {gigabytes(needed)}, and {gigabytes(available)} are free; every tensor was "
            "compared above, and --proof-layers 1 runs one nevertheless"
        )
        report.lines.append(Line("models", "note", text))
    elif count < layers:
        why = "which --proof-layers asks for" if asked else f"which is what fits in {gigabytes(available)}"
        text = f"the first {count} of {layers} layers ran, {why}; the tensors of all are compared above"
        report.lines.append(Line("models", "note", text if asked else f"{text}; --proof-layers sets their number"))
    report.figures["models"] = {"layers": count, "of": layers, "available_bytes": available}
    return count


def _report_models(
    report: Report,
    draft: Draft,
    wide: Draft,
    places: tuple[Path, Path, Path],
    layers: int,
    ids_T: Tensor,
    text: str | None,
) -> None:
    """Run the first layers of base and adapter, then those of the output, and say what came out."""
    base, adapter, output = places
    expected = _adapter_run(base, adapter, ids_T, layers)
    found = _clean_run(output, ids_T, text, layers)
    _report_loading(report, found, layers)
    if text is None:
        report.lines.append(Line("text", "note", "there is no tokenizer: the models ran on random tokens"))
    else:
        same = found.told["read"] == ids_T.tolist()
        report.add("tokens", same, f"the text is read as {'the same' if same else 'other'} tokens")
    if not draft.plan.exact:
        _report_rounding(report, draft, expected, found.logits_TV)
        with TemporaryDirectory() as name:
            write_layers(wide.plan, layers, Path(name))
            found = _clean_run(Path(name), ids_T, None, layers)
        report.lines.append(Line("function", "note", "compared below as the same merge in float32 computes it"))
    _report_logits(report, expected, found.logits_TV)
    _report_greedy(report, expected, found.told["tokens"])


def _rounded(draft: Draft) -> str:
    return ", ".join(sorted({DTYPE_WORDS[write.dtype] for write in draft.plan.writes if not write.lossless}))


def _folded(draft: Draft) -> str:
    """Say which weights beside the experts are rounded: those that the mixture holds in another form, if any."""
    roles = {write.role: None for write in draft.plan.writes if isinstance(write.source, Fold) and not write.lossless}
    return f", for {' and '.join(roles)} are computed, too, and rounded" if roles else ""


def _with_tokenizer(base: Checkpoint, adapter: Path) -> Checkpoint | None:
    """The base with the tokenizer that the output has: the adapter's, if there is one."""
    for each in (replace(base, directory=adapter), base):
        if each.tokenizer_files:
            return each
    return None


def _adapter_run(base: Path, adapter: Path, ids_T: Tensor, layers: int) -> AdapterRun:
    """Run the first `layers` layers of the base with its adapter, in this process."""
    whole = open_adapter(adapter)
    with TemporaryDirectory() as name:
        if layers < len(whole.config["num_experts"]):
            adapter = Path(name)
            cut_adapter(whole, layers, adapter)
        with _quiet():  # else transformers reports every tensor of the layers that are left out
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **reread.cut(base, layers))
        model = attached(model, adapter).eval()
    logits_TV = reread.logits(model, ids_T)
    tokens, margins = reread.greedy(model, ids_T[:PROMPT], NEW_TOKENS)
    run = AdapterRun(logits_TV, tokens, margins, own_rounding(model, ids_T, logits_TV))
    del model
    give_back()  # the other process needs the memory
    return run


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _clean_run(output: Path, ids_T: Tensor, text: str | None, layers: int) -> CleanRun:
    """Run the output by plain transformers in float32; raise UpcycleError when it cannot."""
    run = run_clean(output, ids_T, layers, dtype="float32", prompt=PROMPT, new_tokens=NEW_TOKENS, text=text)
    if run.failure:
        raise UpcycleError(f"{output}: plain transformers cannot run it ({run.failure})")
    return run


def _report_loading(report: Report, run: CleanRun, layers: int) -> None:
    """Every tensor found its place; those of layers that did not run have none."""
    wrong = run.loading_problem(layers)
    by = f"{run.told['class']} of transformers {run.told['version']}, in a process without upcycle"
    clean = not run.told["upcycle"]
    report.add("loading", clean and not wrong, wrong or (by if clean else "upcycle was imported by the other process"))


def _report_rounding(report: Report, draft: Draft, expected: AdapterRun, found_TV: Tensor) -> None:
    """Say what writing another data type than float32 does to the logits; it fails only where they are no numbers."""
    difference, agreement = _difference(expected, found_TV)
    text = (
        f"as {_rounded(draft)} its logits are up to {difference:.1e} of the largest away, and the likeliest "
        f"token agrees at {agreement:.2%} of positions{_folded(draft)}; --dtype f32 writes it exactly"
    )
    finite = isfinite(difference)
    report.lines.append(Line("rounding", "note" if finite else "FAIL", text))
    report.figures["rounding"] = {"relative": difference if finite else None, "agreement": agreement}


def _difference(expected: AdapterRun, found_TV: Tensor) -> tuple[float, float]:
    """Return the largest difference of a logit, relative to the largest, and at how many positions, of 1, the likeliest
    token is the same.
    """
    expected_TV = expected.logits_TV
    if found_TV.shape != expected_TV.shape or not found_TV.isfinite().all():
        return inf, 0.0
    agreement = float((expected_TV.argmax(-1) == found_TV.argmax(-1)).float().mean())
    return float((found_TV - expected_TV).abs().max()) / expected.largest, agreement


def _report_logits(report: Report, expected: AdapterRun, found_TV: Tensor) -> None:
    """The logits differ by no more than rounding makes of them; the adapter's own rounding is told beside."""
    relative, agreement = _difference(expected, found_TV)
    right, finite = relative <= expected.tolerance, isfinite(relative)
    report.add(
        "logits",
        right,
        f"largest error {relative:.1e} of the largest logit (exact: {expected.tolerance:.1e} or less, for rounding "
        f"alone moves the adapter's by {expected.rounding:.1e}); {relative * expected.largest:.2e} of "
        f"{expected.largest:.4g}, on {len(expected.logits_TV)} tokens",
    )
    near = agreement == 1 or right  # a tie may fall either way
    report.add("top-1", near, f"the likeliest token agrees at {agreement:.2%} of positions")
    report.figures["parity"] = {
        "tokens": len(expected.logits_TV), "largest_logit": expected.largest,
        "difference": relative * expected.largest if finite else None, "relative": relative if finite else None,
        "agreement": agreement, "rounding": expected.rounding, "tolerance": expected.tolerance,
    }  # fmt: skip


def _report_greedy(report: Report, expected: AdapterRun, found: list[int]) -> None:
    """The tokens written; in an exact merge they part only where two tokens are as likely, but for rounding."""
    pairs = enumerate(zip(expected.tokens, found, strict=True))
    place = next((index for index, (one, other) in pairs if one != other), None)
    if place is None:
        report.add("greedy text", True, f"the same {len(found)} tokens")
        return
    margin = expected.margins[place]
    tie = margin <= 2 * expected.tolerance * expected.largest
    text = f"the same for {place} of {len(found)} tokens; there the likeliest is {margin:.1e} ahead"
    report.add("greedy text", False, text, otherwise="note" if tie else "FAIL")
