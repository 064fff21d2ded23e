"""Runs a conversion as any user of transformers would: loaded with the defaults, in a process without upcycle.

`verify` computes layer by layer in float32 with experts one after the other; this shows that the output also runs in
the data type it is written in, with the kernel that transformers chooses.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy

from upcycle.checkpoint.reader import Checkpoint
from upcycle.families.grouped import EAGER
from upcycle.families.wrappers import language_model
from upcycle.moe.clean_run import CleanRun, run_clean
from upcycle.moe.memory import (
    FLOAT_BYTES,
    LOGITS_HELD,
    available_memory,
    gigabytes,
    layers_that_fit,
    memory_needed,
)
from upcycle.plan.report import Line, Report

NAME = "plain transformers"
"""Of the line."""

VALUE_BYTES = {"float64": 8, "float32": 4}
"""Data type in config.json -> bytes of a parameter; 2 for all others."""

WHOLE = ("num_kv_shared_layers", "hidden_size_per_layer_input", "per_layer_config")
"""Config fields of models whose first layers cannot be loaded alone: they count layers, or have weights for all."""

NEAR = 0.1
"""Largest difference of the loss that 16-bit weights and another kernel may make, relative to the loss or to 1 nat."""


def report_plain(report: Report, moe: Checkpoint, ids_T: Tensor, loss: float) -> None:
    """Add a line on what plain transformers makes of `moe` on token ids `(T,)`; `loss` is that in float32, in nats.

    As many of the first layers run as fit into memory; of fewer than all, the loss says nothing.
    """
    text = language_model(moe).config
    layers: int = text["num_hidden_layers"]
    sizes = {spec.name: spec.elements for spec in moe.tensors.values()}
    beside = LOGITS_HELD * FLOAT_BYTES * len(ids_T) * text["vocab_size"]
    value_bytes = VALUE_BYTES.get(str(moe.config.get("dtype")), 2)
    available = available_memory()
    count = layers_that_fit((sizes,), layers, beside, available, value_bytes)
    least = layers if text is not moe.config or any(text.get(name) for name in WHOLE) else 1
    if count < least:
        needed = gigabytes(memory_needed(sizes.items(), least, beside, value_bytes))
        what = "one layer takes" if least == 1 else "it runs as a whole, which takes"
        report.lines.append(Line(NAME, "note", f"not run: {what} {needed}, and {gigabytes(available)} are free"))
        return
    run = run_clean(moe.directory, ids_T, count)
    problem = _failure(run, moe, ids_T, count) or run.loading_problem(count) or _wrong(run, ids_T, layers, count, loss)
    if problem:
        report.add(NAME, False, problem)
        return
    told = run.told
    what = f"{told['class']} {told['version']}, {told['dtype']}, {told['experts']}: loads and runs with its defaults"
    if count < layers:
        said = f"{what}; the first {count} of {layers} layers, which is what fits in {gigabytes(available)}"
        report.lines.append(Line(NAME, "note", said))
    else:
        report.add(NAME, True, f"{what}, loss {_loss(run, ids_T):.4f}")


def _failure(run: CleanRun, moe: Checkpoint, ids_T: Tensor, layers: int) -> str | None:
    """Return how it failed to run, and whether experts that are run one after the other help; None if it ran."""
    if run.failure is None:
        return None
    eager = run_clean(moe.directory, ids_T, layers, experts="eager")
    if eager.failure is None:
        return f"it stops with its defaults ({run.failure}); only {EAGER} runs it"
    return f"it cannot run it ({run.failure})"


def _wrong(run: CleanRun, ids_T: Tensor, layers: int, count: int, loss: float) -> str | None:
    """Return what is wrong with the logits: no numbers, or those of another model."""
    if not run.logits_TV.isfinite().all():
        return f"its logits in {run.told['dtype']} are not finite"
    found = _loss(run, ids_T)
    if count == layers and not abs(found - loss) <= NEAR * max(1.0, loss):
        return f"it computes something else in {run.told['dtype']}: loss {found:.4f}, in float32 {loss:.4f}"
    return None


def _loss(run: CleanRun, ids_T: Tensor) -> float:
    return float(cross_entropy(run.logits_TV[:-1], ids_T[1:]))
