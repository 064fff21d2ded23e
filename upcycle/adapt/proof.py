"""Is what was merged what was trained? Plain transformers reads it in a process of its own; the adapter is run here.

Both run in float32, as many of their first layers as fit into memory; the tensors of all layers are compared with what
they are made from. Shapes: T tokens, V vocabulary.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from upcycle.adapt import reread
from upcycle.adapt.changes import NAMED, report_experts
from upcycle.adapt.depth import (
    FLOAT_BYTES,
    available_memory,
    cut_adapter,
    give_back,
    layer_of,
    layers_that_fit,
    memory_needed,
    write_layers,
)
from upcycle.adapt.draft import Draft
from upcycle.adapters.load import attached
from upcycle.checkpoint.adapter import Adapter, open_adapter
from upcycle.checkpoint.reader import Checkpoint, open_checkpoint
from upcycle.errors import UpcycleError
from upcycle.plan.compare import compare_tensors, report_tensors
from upcycle.plan.dtypes import DTYPE_WORDS
from upcycle.plan.make import worker_count
from upcycle.plan.receipt import read_receipt
from upcycle.plan.report import Line, Report
from upcycle.requests.merge import Merge
from upcycle.text.read import random_ids, read_text, token_ids

TOLERANCE = 1e-5
"""Largest difference of a logit of an exact merge, relative to the largest logit: float32's order of summation."""

PROMPT, NEW_TOKENS = 16, 24
"""Tokens that both models go on from, and the tokens that they write."""

RANDOM_TOKENS = 64
"""At most, of a model without a tokenizer."""

LOGITS_HELD = 4
"""Times that all logits are held at once."""

FRUGAL = {"HF_DEACTIVATE_ASYNC_LOAD": "1", "MALLOC_MMAP_THRESHOLD_": str(10**6)}
"""Environment in which loading takes little more than the weights: transformers reads all experts before it stacks the
first, and glibc keeps what their parts leave behind (1.7 and 1.4 times as much, measured)."""


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
            f"not run: one layer takes {_gigabytes(needed)}, and {_gigabytes(available)} are free; every tensor was "
            "compared above, and --proof-layers 1 runs one nevertheless"
        )
        report.lines.append(Line("models", "note", text))
    elif count < layers:
        why = "which --proof-layers asks for" if asked else f"which is what fits in {_gigabytes(available)}"
        text = f"the first {count} of {layers} layers ran, {why}; the tensors of all are compared above"
        report.lines.append(Line("models", "note", text if asked else f"{text}; --proof-layers sets their number"))
    report.figures["models"] = {"layers": count, "of": layers, "available_bytes": available}
    return count


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


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
    expected_TV, tokens, margins = _adapter_run(base, adapter, ids_T, layers)
    found_TV, told = _clean_run(output, ids_T, text, layers)
    _report_loading(report, told, layers)
    if text is None:
        report.lines.append(Line("text", "note", "there is no tokenizer: the models ran on random tokens"))
    else:
        same = told["read"] == ids_T.tolist()
        report.add("tokens", same, f"the text is read as {'the same' if same else 'other'} tokens")
    if not draft.plan.exact:
        _report_rounding(report, draft, expected_TV, found_TV)
        with TemporaryDirectory() as name:
            write_layers(wide.plan, layers, Path(name))
            found_TV, told = _clean_run(Path(name), ids_T, None, layers)
        report.lines.append(Line("function", "note", "compared below as the same merge in float32 computes it"))
    _report_logits(report, expected_TV, found_TV)
    _report_greedy(report, tokens, margins, told["tokens"], float(expected_TV.abs().max()))


def _rounded(draft: Draft) -> str:
    return ", ".join(sorted({DTYPE_WORDS[write.dtype] for write in draft.plan.writes if not write.lossless}))


def _with_tokenizer(base: Checkpoint, adapter: Path) -> Checkpoint | None:
    """The base with the tokenizer that the output has: the adapter's, if there is one."""
    for each in (replace(base, directory=adapter), base):
        if each.tokenizer_files:
            return each
    return None


def _adapter_run(base: Path, adapter: Path, ids_T: Tensor, layers: int) -> tuple[Tensor, list[int], list[float]]:
    """Return the logits `(T, V)` of the base with its adapter, what it writes, and how sure it was of each token.

    Of both, the first `layers` layers.
    """
    whole = open_adapter(adapter)
    with TemporaryDirectory() as name:
        if layers < len(whole.config["num_experts"]):
            adapter = Path(name)
            cut_adapter(whole, layers, adapter)
        with _quiet():  # else transformers reports every tensor of the layers that are left out
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **reread.cut(base, layers))
        model = attached(model, adapter).eval()
    found = reread.logits(model, ids_T), *reread.greedy(model, ids_T[:PROMPT], NEW_TOKENS)
    del model
    give_back()  # the other process needs the memory
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _clean_run(output: Path, ids_T: Tensor, text: str | None, layers: int) -> tuple[Tensor, dict[str, Any]]:
    """Return the logits `(T, V)` of plain transformers in a process of its own, and what it tells beside."""
    asked = {
        "model": str(output.resolve()), "layers": layers, "ids": ids_T.tolist(), "prompt": PROMPT, "count": NEW_TOKENS,
        "text": text,
    }  # fmt: skip
    with TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "request.json").write_text(json.dumps(asked))
        # -P: the modules beside the script must not be found under the names of installed ones
        argv = [sys.executable, "-P", str(Path(reread.__file__).resolve()), name]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **FRUGAL}
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", cwd=name, env=environment)
        if done.returncode:
            last = next(
                (line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}"
            )
            raise UpcycleError(f"{output}: plain transformers cannot run it ({last[:300]})")
        told: dict[str, Any] = json.loads((directory / "answer.json").read_text())
        return torch.from_numpy(np.load(directory / "logits.npy")), told


def _report_loading(report: Report, told: dict[str, Any], layers: int) -> None:
    """Every tensor found its place; those of layers that did not run have none."""
    found: dict[str, list[str]] = dict(told["loading"])
    unexpected = found.pop("unexpected_keys", [])
    if strange := [name for name in unexpected if (layer_of(name) or 0) < layers]:
        found["unexpected_keys"] = strange
    wrong = "; ".join(f"{kind}: {', '.join(keys[:NAMED])}" for kind, keys in found.items())
    by = f"{told['class']} of transformers {told['version']}, in a process without upcycle"
    clean = not told["upcycle"]
    report.add("loading", clean and not wrong, wrong or (by if clean else "upcycle was imported by the other process"))


def _report_rounding(report: Report, draft: Draft, expected_TV: Tensor, found_TV: Tensor) -> None:
    """Say what writing another data type than float32 does to the logits; it fails only where they are no numbers."""
    difference, largest, agreement = _difference(expected_TV, found_TV)
    text = (
        f"as {_rounded(draft)} its logits are up to {difference / largest:.1e} of the largest away, and the likeliest "
        f"token agrees at {agreement:.2%} of positions; --dtype f32 writes it exactly"
    )
    report.lines.append(Line("rounding", "note" if isfinite(difference) else "FAIL", text))
    report.figures["rounding"] = {
        "relative": difference / largest if isfinite(difference) else None,
        "agreement": agreement,
    }


def _difference(expected_TV: Tensor, found_TV: Tensor) -> tuple[float, float, float]:
    """Return the largest difference, the largest logit, and the share of positions with the same likeliest token."""
    largest = max(float(expected_TV.abs().max()), 1e-30)
    if found_TV.shape != expected_TV.shape or not found_TV.isfinite().all():
        return inf, largest, 0.0
    agreement = float((expected_TV.argmax(-1) == found_TV.argmax(-1)).float().mean())
    return float((found_TV - expected_TV).abs().max()), largest, agreement


def _report_logits(report: Report, expected_TV: Tensor, found_TV: Tensor) -> None:
    difference, largest, agreement = _difference(expected_TV, found_TV)
    relative = difference / largest
    finite = isfinite(relative)
    report.add(
        "logits",
        relative <= TOLERANCE,
        f"differ by at most {difference:.2e}, {relative:.1e} of the largest ({largest:.4g}; exact is {TOLERANCE:.0e} "
        f"or less), on {len(expected_TV)} tokens",
    )
    near = agreement == 1 or relative <= TOLERANCE  # a tie may fall either way
    report.add("top-1", near, f"the likeliest token agrees at {agreement:.2%} of positions")
    report.figures["parity"] = {
        "tokens": len(expected_TV), "largest_logit": largest, "difference": difference if finite else None,
        "relative": relative if finite else None, "agreement": agreement,
    }  # fmt: skip


def _report_greedy(report: Report, ours: list[int], margins: list[float], theirs: list[int], largest: float) -> None:
    """The tokens written; in an exact merge they part only where two tokens are as likely, but for rounding."""
    place = next((index for index, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other), None)
    if place is None:
        report.add("greedy text", True, f"the same {len(ours)} tokens")
        return
    tie = margins[place] <= 2 * TOLERANCE * largest
    text = f"the same for {place} of {len(ours)} tokens; there the likeliest is {margins[place]:.1e} ahead"
    report.add("greedy text", False, text, otherwise="note" if tie else "FAIL")
