"""Do the weights fit the model class? Stock transformers loads their names and shapes, on no device at all."""

import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from upcycle.errors import CheckpointError, InputError
from upcycle.ship.contents import Shapes

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHOWN = 3


def check_fit(directory: Path, shapes: Shapes) -> None:
    """Raise CheckpointError unless transformers would load exactly the tensors of `shapes` for the config in
    `directory`: none missing, which it would draw at random, none unexpected, which it would drop.

    It is the loader of users that says so, fed with tensors on the meta device, so it takes no memory and no weights.
    Raises InputError for a model that transformers does not know.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        model_class = AutoModelForCausalLM._model_mapping[type(config)]
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"transformers knows no causal language model of this config ({reason})", where=directory
        ) from None
    tensors = {name: _empty(directory, name, *of) for name, of in shapes.items()}
    with _silence() as said:
        try:
            _, found = model_class.from_pretrained(
                None, config=config, state_dict=tensors, dtype="auto", device_map="meta",
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
        except RuntimeError:  # experts that cannot be stacked: one is missing, or has another shape
            raise CheckpointError(
                "transformers cannot put the tensors together", where=directory, found=_complaint(said.getvalue()),
                expected=f"what {model_class.__name__} has by config.json",
            ) from None  # fmt: skip
    problems = {
        "missing": sorted(found["missing_keys"]),
        "that it does not know": sorted(found["unexpected_keys"]),
        "of another shape": sorted(str(entry[0]) for entry in found["mismatched_keys"]),
    }
    for what, names in problems.items():
        if names:
            raise CheckpointError(
                f"{len(names)} tensors {what}, by {model_class.__name__} of transformers", where=directory,
                found=_some(names),
            )  # fmt: skip


def _empty(directory: Path, name: str, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    if dtype not in DTYPES:
        raise CheckpointError(
            f"tensor {name!r} is of a data type that is not published", where=directory, found=dtype,
            expected=", ".join(DTYPES),
        )  # fmt: skip
    return torch.empty(shape, dtype=DTYPES[dtype], device="meta")


@contextmanager
def _silence() -> Iterator[io.StringIO]:
    """Keep transformers' report off the terminal, and give its text."""
    said = io.StringIO()
    logger = logging.getLogger("transformers")
    handler = logging.StreamHandler(said)
    level, propagate, others = logger.level, logger.propagate, list(logger.handlers)
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    logger.handlers, logger.propagate = [handler], False
    try:
        with redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        logger.handlers, logger.propagate = others, propagate
        logger.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _complaint(report: str) -> str:
    lines = [line.strip() for line in report.splitlines() if "experts" in line or "CONVERSION" in line]
    return _some(lines) or "a conversion that fails"


def _some(names: Iterable[Any]) -> str:
    listed = [str(name)[:120] for name in names]
    rest = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
