"""The record of a conversion in its receipt: written without paths, read as strictly as any file from outside."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upcycle.errors import CheckpointError, InputError, RequestError
from upcycle.option import accepts, options_of
from upcycle.plan.receipt import RECORD, Origin, as_text
from upcycle.requests import Conversion, recorded


def record_of(request: Conversion, origin: Origin) -> dict[str, Any]:
    """Return what the receipt says of `request`: files by their names, the model by where it came from."""
    record = recorded(request)
    record["model"] = origin.name
    for name in ("tokenizer", "chat_template"):
        record[name] = record[name] and as_text(Path(record[name]).name)
    return record


def request_of(receipt: Mapping[str, Any], where: Path) -> Conversion:
    """Return the conversion that a receipt records, for building its plan again.

    Raises CheckpointError for a record that no conversion can have, InputError for what another command made.
    """
    if receipt[RECORD].get("command") == "merge":  # that of a conversion names no command
        raise InputError(
            "was made by `upcycle merge`, which proves by itself that it computes what the adapter does", where=where,
            hint="`upcycle merge` with --overwrite proves it again",
        )  # fmt: skip
    options = {name: option for name, option in options_of(Conversion).items() if option.recorded}
    added = {name: option.default for name, option in options.items() if option.added}
    said = {**added, **receipt[RECORD], "tokenizer": None, "chat_template": None}
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    wrong = [name for name, option in options.items() if not accepts(option, values.get(name))]
    if wrong or set(said) != set(options):
        raise CheckpointError(f"damaged record in the receipt ({', '.join(wrong) or 'wrong names'})", where=where)
    try:
        return Conversion(**values, allow_dead_router=True)
    except RequestError as error:
        raise CheckpointError(f"damaged record in the receipt ({error})", where=where) from None
