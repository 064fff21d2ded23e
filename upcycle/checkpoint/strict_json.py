"""Reads JSON from outside, refusing duplicate keys, NaN, infinity, deep nesting and wrong encodings; writes no NaN."""

import codecs
import json
import math
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from upcycle.errors import CheckpointError
from upcycle.message import quoted

MAX_JSON_BYTES = 32_000_000
"""Of a config or an index. The largest published models have indices of 15 MB, and Python needs 20 times that."""


def parse_json(data: bytes, where: str | Path) -> Any:
    """Return the value of UTF-8 JSON `data`; raise CheckpointError naming `where` if it is not strict JSON."""
    try:
        # Decoded here, not by json.loads, which would also accept UTF-16 and UTF-32.
        return json.loads(
            _decode(data),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_int=_integer,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"not valid JSON ({reason})", where=where) from None


def parse_object(data: bytes, where: str | Path) -> dict[str, Any]:
    """As `parse_json`, for a document that must be an object."""
    value = parse_json(data, where)
    if not isinstance(value, dict):
        raise CheckpointError("wrong JSON document", where=where, found=type(value).__name__, expected="an object")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object; raise CheckpointError when it is absent or not strict JSON."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                "JSON file too large", where=path, found=f"{path.stat().st_size} bytes", expected="at most 32 MB"
            )
        value = parse_object(path.read_bytes(), path)
        json.dumps(value, ensure_ascii=False).encode()
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=path) from None
    except UnicodeEncodeError:  # "\ud800" by itself: could be read, but not written again
        raise CheckpointError("holds half of a surrogate pair", where=path) from None
    return value


def without_nan(value: Any) -> Any:
    """Return JSON data with null for NaN and infinity, which a broken model gives and JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_finite_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of JSON is a number that can be computed with: neither NaN, infinity nor a truth value."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _decode(data: bytes) -> str:
    """Return UTF-8 as text; the encodings that editors write in its place are called by their names."""
    if data.startswith(codecs.BOM_UTF8):
        raise ValueError("it begins with a byte order mark")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16, where UTF-8 is expected")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {quoted(key, 120)}")
        result[key] = value
    return result


def _integer(digits: str) -> int:
    if digits == "-0":  # an integer to Python, a float to others
        raise ValueError("-0 is not a whole number to all readers")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):  # 1e999: would be written again as Infinity, which is not JSON
        raise ValueError(f"{digits[:40]} is out of range")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
