"""An adapter directory: its config, its tensors, and the model that it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upcycle.checkpoint.header import TensorSpec
from upcycle.checkpoint.identity import fingerprint
from upcycle.checkpoint.reader import Directory, open_checkpoint
from upcycle.errors import CheckpointError, InputError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"


@dataclass(frozen=True)
class Adapter:
    """A peft adapter; tensors are known from the header, no data has been read."""

    directory: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorSpec]

    @property
    def base(self) -> str:
        """The model that it belongs to, as it can be located: a directory, or a Hub id with its revision."""
        name, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        if not isinstance(name, str) or not name:
            raise InputError(
                "does not say which model it belongs to", where=self.directory / ADAPTER_CONFIG,
                expected="base_model_name_or_path", hint="--base names it",
            )  # fmt: skip
        return f"{name}@{revision}" if isinstance(revision, str) and revision and "/" in name else name

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
                "is not the model that the adapter was made for: its weights are others", where=base,
                found=f"fingerprint {found[:16]}",
                expected=f"{str(wanted)[:16]}, of {self.config.get('base_model_name_or_path')}{at}",
                hint="--base names another directory",
            )  # fmt: skip


def is_adapter(directory: Path) -> bool:
    """Whether this is an adapter, and not a model."""
    return (directory / ADAPTER_CONFIG).is_file() and not (directory / "config.json").is_file()


def open_adapter(directory: Path) -> Adapter:
    """Read config and header; raise CheckpointError when anything is missing or malformed."""
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
