"""Checks that the weights fit the model class: plain transformers loads their names and shapes, without their data."""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from upcycle.checkpoint.header import Shapes
from upcycle.checkpoint.reader import CONFIG_FILE
from upcycle.checkpoint.strict_json import read_object
from upcycle.errors import CheckpointError, InputError
from upcycle.message import listed, quoted
from upcycle.moe.auto import auto_class

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHOWN = 3


def check_fit(directory: Path, shapes: Shapes) -> None:
    """Raise CheckpointError unless transformers would load exactly the tensors of `shapes` for the config in
    `directory`: none missing, which it would draw at random, none unexpected, which it would drop. Those that the class
    itself names as no weights, such as masks of old checkpoints, do not count.

    It is the loader of users that says so, fed with tensors on the meta device, so it takes no memory and no weights.
    Raises InputError for a config that transformers can make no model of.
    """
    _check_counts(directory, len(shapes))
    with _silence() as said:
        try:
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
            model_class = auto_class(config)._model_mapping[type(config)]
        except Exception as error:  # whatever it may be, the config is the cause: nothing else is read
            raise InputError(
                f"transformers knows no causal language model of this config ({_reason(error)})", where=directory
            ) from None
        dropped = [re.compile(pattern) for pattern in model_class._keys_to_ignore_on_load_unexpected or ()]
        kept = {name: of for name, of in shapes.items() if not any(pattern.search(name) for pattern in dropped)}
        tensors = {name: _empty(directory, name, *of) for name, of in kept.items()}
        try:
            _, found = model_class.from_pretrained(
                None, config=config, state_dict=tensors, dtype="auto", device_map="meta",
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
        except Exception as error:
            complaint = _complaint(said.getvalue())
            if complaint:  # experts that cannot be stacked: one is missing, or has another shape
                raise CheckpointError(
                    "transformers cannot put the tensors together", where=directory, found=complaint,
                    expected=f"what {model_class.__name__} has by config.json",
                ) from None  # fmt: skip
            raise InputError(
                f"{model_class.__name__} of transformers cannot be made of this config ({_reason(error)})",
                where=directory,
            ) from None
    problems = {
        "missing": sorted(found["missing_keys"]),
        "that it does not know": sorted(found["unexpected_keys"]),
        "of another shape": sorted(str(entry[0]) for entry in found["mismatched_keys"]),
    }
    for what, names in problems.items():
        if names:
            raise CheckpointError(
                f"{len(names)} tensors {what}, by {model_class.__name__} of transformers", where=directory,
                found=listed(names, _SHOWN),
            )  # fmt: skip


def _check_counts(directory: Path, tensors: int) -> None:
    """Raise CheckpointError for numbers that contradict one another, which transformers would only meet in use."""
    said = read_object(directory / CONFIG_FILE)

    def number(name: str) -> int:
        return said[name] if type(said.get(name)) is int else 0

    layers, used = number("num_hidden_layers"), number("num_experts_per_tok")
    experts = {name: number(name) for name in ("num_local_experts", "num_experts") if number(name)}
    where = directory / CONFIG_FILE
    if layers > tensors:
        raise CheckpointError(
            "more layers than tensors", where=where, found=f"{layers:,}", expected=f"up to {tensors:,}"
        )
    if len(set(experts.values())) > 1:
        raise CheckpointError(f"{' and '.join(experts)} differ", where=where, found=listed(experts.values(), _SHOWN))
    if experts and not 0 < used <= min(experts.values()) and "num_experts_per_tok" in said:
        raise CheckpointError(
            "num_experts_per_tok is not a number of experts that there are", where=where,
            found=quoted(said["num_experts_per_tok"], 40), expected=f"1 to {min(experts.values())}",
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
    """Catch transformers' report of missing and unexpected weights, and give its text."""
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
    lines = (line.strip() for line in report.splitlines() if "experts" in line or "CONVERSION" in line)
    return listed(lines, _SHOWN)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
