"""Opens an adapter directory: its config, the header of its tensors, and which base model it belongs to."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upcycle.checkpoint.header import TensorSpec
from upcycle.checkpoint.identity import fingerprint
from upcycle.checkpoint.reader import Directory, open_checkpoint
from upcycle.errors import CheckpointError, InputError
from upcycle.message import quoted

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"

EXPERTS, LORA = "UPCYCLE", "LORA"
"""Kinds of adapters, `peft_type`: upcycle's own, and peft's plain LoRA."""

MAX_REPEATS, MAX_PATTERN = 3, 500
"""Repeats in a regular expression, each of which multiplies the time it can take on a module's name, and characters."""


@dataclass(frozen=True)
class Adapter:
    """A peft adapter on disk; its tensors are known from the header, no data has been read."""

    directory: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorSpec]

    @property
    def base(self) -> str:
        """The base model's place: a directory, or a Hub id, followed by @ and its revision where it has one."""
        name, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        if not isinstance(name, str) or not name:
            raise InputError(
                "does not say which model it belongs to", where=self.directory / ADAPTER_CONFIG,
                expected="base_model_name_or_path", hint="--base names it",
            )  # fmt: skip
        return f"{name}@{revision}" if isinstance(revision, str) and revision and "/" in name else name

    @property
    def has_experts(self) -> bool:
        """Whether it holds experts, as only upcycle's own adapters do."""
        return bool(self.config.get("peft_type") == EXPERTS)

    def check_kind(self) -> None:
        """Raise InputError unless the adapter holds experts or is a plain LoRA, the kinds that upcycle can run.

        Also refused are LoRAs whose module names are regular expressions that could take forever to match.
        """
        kind = self.config.get("peft_type")
        if kind not in (EXPERTS, LORA):
            raise InputError(
                "is an adapter of a kind that cannot be used here", where=self.directory, found=quoted(kind, 40),
                expected=f"{EXPERTS} or {LORA}",
            )  # fmt: skip
        slow = list(filter(_is_slow, self._patterns()))
        if kind == LORA and slow:
            raise InputError(
                "holds a pattern of module names, which could take forever to match", where=self.directory,
                found=quoted(slow[0], 80), expected="names, or a simple pattern",
            )  # fmt: skip

    def _patterns(self) -> Iterator[str]:
        """Yield the config's strings that peft matches as regular expressions."""
        for name in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
            value = self.config.get(name)
            if isinstance(value, str):
                yield value
            elif isinstance(value, dict):
                yield from map(str, value)

    def check_base(self, base: Path) -> None:
        """Raise InputError unless the model in `base` is the one that the adapter was made for."""
        wanted = self.config.get("base_fingerprint")
        if wanted is None:  # made by another program
            return
        found = fingerprint(open_checkpoint(base))
        if found != wanted:
            revision = self.config.get("revision")
            at = f" at revision {revision}" if revision else ""
            raise InputError(
                "is not the model that the adapter was made for: its weights differ", where=base,
                found=f"fingerprint {found[:16]}",
                expected=f"{str(wanted)[:16]}, of {self.config.get('base_model_name_or_path')}{at}",
                hint="--base names another directory",
            )  # fmt: skip


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds an adapter and no model."""
    return (directory / ADAPTER_CONFIG).is_file() and not (directory / "config.json").is_file()


def open_adapter(directory: Path) -> Adapter:
    """Read an adapter's config and header; raise CheckpointError when either is missing or malformed."""
    if not directory.is_dir():
        raise CheckpointError("no such adapter directory", where=directory)
    files = Directory(directory)
    if not files.has(ADAPTER_CONFIG):
        raise CheckpointError("is no adapter", where=directory, expected=ADAPTER_CONFIG)
    if not files.has(ADAPTER_WEIGHTS):
        pickled = files.has(ADAPTER_PICKLE)
        raise CheckpointError(
            "holds pickled weights, which can run code when they are read" if pickled else "holds no weights",
            where=directory, expected=ADAPTER_WEIGHTS,
            hint="load it with peft and save it again, which writes safetensors" if pickled else None,
        )  # fmt: skip
    return Adapter(directory, files.json(ADAPTER_CONFIG), files.header(ADAPTER_WEIGHTS).tensors)


def _is_slow(pattern: str) -> bool:
    """Whether a regular expression could take long to match: a repeated group, or many repeats."""
    plain = pattern.replace("(?:", "(")
    repeats = len(re.findall(r"[*+?{]", plain))
    return len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"\)[*+?{]", plain) is not None
