"""The files that go beside the weights as they are: tokenizer, chat template, generation config."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from upcycle.checkpoint.reader import (
    CHAT_TEMPLATE_FILES,
    GENERATION_FILE,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    present_files,
)
from upcycle.errors import InputError
from upcycle.requests import Conversion

_READ_WITH_TEXT = (*TOKENIZER_FILES, *CHAT_TEMPLATE_FILES)


def side_files(model: Path, request: Conversion, *, processors: bool = False) -> dict[str, Path]:
    """Return the files of a conversion by name: the model's own, and those that are asked for in their place.

    `processors` says that the model reads more than text: what describes its images and sounds comes along.
    """
    directory = model
    if request.tokenizer is not None:
        directory = Path(request.tokenizer)
        if not present_files(directory, TOKENIZER_FILES):
            raise InputError("holds no tokenizer", where=directory, expected=" or ".join(TOKENIZER_FILES[:3]))
    own = (GENERATION_FILE, *(PROCESSOR_FILES if processors else ()))
    named = _by_name(present_files(directory, _READ_WITH_TEXT), present_files(model, own))
    if request.chat_template is not None:
        template = Path(request.chat_template)
        if not template.is_file():
            raise InputError("no such file", where=template, hint="--chat-template names a Jinja file")
        named = {name: path for name, path in named.items() if name not in CHAT_TEMPLATE_FILES}
        named[CHAT_TEMPLATE_FILES[0]] = template
    _check_json(named)
    return named


def merged_side_files(base: Path, adapter: Path) -> dict[str, Path]:
    """Return the files of a merge by name: the tokenizer that the adapter was trained with, else the base's."""
    files = present_files(adapter, _READ_WITH_TEXT)
    if not any(path.name in TOKENIZER_FILES for path in files):
        files = present_files(base, _READ_WITH_TEXT)
    return _by_name(files, present_files(base, (GENERATION_FILE,)))


def _by_name(*files: Sequence[Path]) -> dict[str, Path]:
    return {path.name: path for group in files for path in group}


def _check_json(files: Mapping[str, Path]) -> None:
    """Refuse a broken side file now, so that it is not the reader of the output who finds it."""
    for name, path in files.items():
        if name.endswith(".json"):
            try:
                json.loads(path.read_bytes())
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else ascii(str(error))[1:-1][:200]
                raise InputError(f"not valid JSON ({reason})", where=path) from None
