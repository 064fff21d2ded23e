"""Finds models: a directory, a `.gguf` file, a Hub id or a built-in name becomes a directory on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING

import upcycle
from upcycle.errors import InputError
from upcycle.option import nearest

if TYPE_CHECKING:
    from upcycle.checkpoint.reader import Checkpoint

BUILT_IN = {"demo:tiny": Path(upcycle.__file__).parent / "data" / "tiny"}
"""Models that come with upcycle: a llama of a million parameters that has read the King James Bible."""

_EXPECTED = "a directory, a .gguf file or a Hub id"


def locate(model: str, *, allow_pickle: bool = False) -> Path:
    """Return the directory of `model`: a directory, a `.gguf` file, a Hub id or a built-in name.

    A GGUF file is dequantised into the cache, a Hub id is downloaded, and with `allow_pickle` a pickled checkpoint is
    read into the cache, as tensors and nothing else. Raises InputError when there is nothing there.
    """
    directory = located_here(model) or _downloaded(model, allow_pickle)
    if allow_pickle:
        from upcycle.foreign.pickle import unpickled

        return unpickled(directory)
    return directory


def located_here(model: str) -> Path | None:
    """Return the directory of a model that is on this machine, or None for what can only be a Hub id.

    Raises InputError for what is neither.
    """
    try:
        path = BUILT_IN.get(model) or Path(model).expanduser()
        if path.is_dir():
            return path
    except (OSError, RuntimeError) as error:  # a name that is too long, the home of nobody
        raise InputError(f"no such directory ({error})", where=model[:200]) from None
    if path.suffix == ".gguf":
        from upcycle.foreign.gguf import dequantised

        return dequantised(path)
    if path.exists():
        raise InputError("is not a model", where=path, expected=_EXPECTED)
    from upcycle.hub.client import is_hub_id

    if not is_hub_id(model):
        raise InputError("no such directory", where=model, expected=_EXPECTED, hint=nearest(model, BUILT_IN))
    return None


def locate_base(adapter: Path, base: str | None, *, allow_pickle: bool = False) -> Path | None:
    """Return the directory of the model that an adapter belongs to; None when `adapter` is no adapter.

    The adapter names its model, and `base` overrides that name. Raises InputError when the model is not there, or is
    another one than the adapter was made for.
    """
    from upcycle.checkpoint.adapter import is_adapter, open_adapter

    if not is_adapter(adapter):
        if base is not None:
            raise InputError("--base is for adapters, and this is none", where=adapter)
        return None
    opened = open_adapter(adapter)
    opened.check_kind()
    found, dense = _opened_base(adapter, opened.base, base, allow_pickle)
    opened.check_base(found)
    if opened.has_experts:
        check_experts(adapter, dense)
    return found


def _opened_base(adapter: Path, named: str, base: str | None, allow_pickle: bool) -> "tuple[Path, Checkpoint]":
    from upcycle.checkpoint.reader import open_checkpoint

    try:
        found = locate(base or named, allow_pickle=allow_pickle)
        return found, open_checkpoint(found)
    except InputError as error:
        if base is not None:
            raise
        hint = "--base names the directory or Hub id where it is"
        raise InputError(f"the model of this adapter cannot be found ({error})", where=adapter, hint=hint) from None


def check_experts(adapter: Path, dense: "Checkpoint") -> None:
    """Raise InputError unless the adapter's experts fit the layers of a dense model that upcycle knows."""
    from upcycle.build.adapter_experts import open_experts
    from upcycle.families.config import experts_named
    from upcycle.families.match import match
    from upcycle.families.pairs import DENSE

    if dense.config.get("model_type") in DENSE and not experts_named(dense.config):
        open_experts(adapter, match(dense))


def _downloaded(model: str, allow_pickle: bool) -> Path:
    from upcycle.hub.client import download

    return download(model, pickle=allow_pickle)
