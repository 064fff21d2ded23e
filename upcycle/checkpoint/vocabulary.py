"""How many tokens a tokenizer has, read from its JSON files without transformers.

    tokenizer.json           model.vocab (an object token -> id, or a list whose indices are the ids) and added_tokens
    tokenizer_config.json    added_tokens_decoder, an object id -> token
    added_tokens.json        an object token -> id
    vocab.json               an object token -> id, of tokenizers without a tokenizer.json

A SentencePiece file (tokenizer.model) by itself is not read; tokens added beside one are.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from upcycle.checkpoint.reader import present_files
from upcycle.checkpoint.strict_json import parse_object
from upcycle.errors import CheckpointError

_MOST = 2**31  # no embedding has more rows; an id beyond it is damage, not a token


def token_count(directory: Path) -> int | None:
    """Return the highest token id of the tokenizer in `directory` plus one: the rows that an embedding needs for it.

    None where no file says it, or where those that would are damaged, which is for the tokenizer's own reader to tell.
    """
    found = {path.name: path for path in present_files(directory, tuple(_IDS))}
    if "tokenizer.json" in found:
        found.pop("vocab.json", None)  # left over from before: readers take tokenizer.json
    ids = [number for name, path in found.items() for number in _IDS[name](_object(path))]
    return max((number for number in ids if type(number) is int and 0 <= number < _MOST), default=-1) + 1 or None


def _object(path: Path) -> dict[str, Any]:
    try:
        return parse_object(path.read_bytes(), path)
    except CheckpointError:
        return {}


def _of_tokenizer(value: Mapping[str, Any]) -> Iterator[Any]:
    model = value.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary.values()
    elif isinstance(vocabulary, list):
        yield len(vocabulary) - 1
    added = value.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        yield token.get("id") if isinstance(token, dict) else None


def _of_config(value: Mapping[str, Any]) -> Iterator[Any]:
    added = value.get("added_tokens_decoder")
    for number in added if isinstance(added, dict) else ():
        yield int(number) if number.isascii() and number.isdigit() and len(number) < 11 else None


_IDS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Any]]] = {
    "tokenizer.json": _of_tokenizer,
    "tokenizer_config.json": _of_config,
    "added_tokens.json": lambda value: iter(value.values()),
    "vocab.json": lambda value: iter(value.values()),
}
"""File -> how token ids are found in it."""
