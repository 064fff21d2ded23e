"""Remembers what a recipe has done from one run to the next, so that steps whose inputs are unchanged are skipped.

    .upcycle/NAME.json    in the current directory: for every step its request, what it read and what it wrote

A step that ended has its files under `wrote`. A step that began and did not end has none there, and the next run
resumes it. A file that is damaged costs time and nothing else: all steps are done again.
"""

import json
import logging
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import upcycle
from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.place import staging_path
from upcycle.checkpoint.strict_json import read_object
from upcycle.checkpoint.writer import write_durably
from upcycle.errors import CheckpointError
from upcycle.pipeline.touched import beginnings, facts, is_of, is_of_the_hub, read_by, written_by
from upcycle.requests.commands import command_of

DIRECTORY = Path(".upcycle")
"""In the current directory, to which the paths of a recipe are relative too."""

MAX_STEPS = 256
"""The newest steps that are remembered; a step with other options is another step."""

_FORMAT = 1
_MANNER = ("overwrite", "resume")  # say how the work is done and change nothing in its result
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "command": str, "request": dict, "upcycle": str, "read": dict, "began": (list, type(None)),
    "wrote": (dict, type(None)),
}  # fmt: skip

_log = logging.getLogger("upcycle")


class Done:
    """The memory of one recipe; made by `remembered`."""

    def __init__(self, path: Path, name: str, steps: list[dict[str, Any]], *, again: bool) -> None:
        """Remember `steps`; with `again` they are kept, and none counts."""
        self._path, self._name, self._steps, self._again = path, name, steps, again
        self._warned = False

    def keeps(self, request: Any) -> bool:
        """Whether a step is remembered: its command is, and it writes files here."""
        elsewhere = getattr(request, "dry_run", False) or getattr(request, "stream_to", None)
        return command_of(request).remembers and not elsewhere

    def has(self, request: Any) -> bool:
        """Whether a step was done, and all that it read and wrote, and the version of upcycle, are unchanged."""
        step = self._step(request, ended=True) if self.keeps(request) else None
        if step is None or self._again or step["upcycle"] != upcycle.__version__:
            return False
        if not step["wrote"] and getattr(request, "out", None):  # nobody's work
            return False
        if any(facts(Path(path)) != found for path, found in step["wrote"].items()):
            return False
        now = read_by(request)
        return step["read"] == now and None not in now.values()

    def begin(self, request: Any) -> Any:
        """Note that a step begins; return its request, with `resume` set if an earlier run was interrupted in it."""
        if not self.keeps(request):
            return request
        begun, read = self._step(request, ended=False), read_by(request)
        began = beginnings(request) if hasattr(request, "resume") else None
        if begun and self._left(begun, began, read) and is_of(request) and not self._again:
            request, began = replace(request, resume=True), begun["began"]
        self._note(request, began=began, read=read, wrote=None)
        return request

    def end(self, request: Any, result: Any) -> None:
        """Note that a step is done; a conversion that waits for its other parts is not."""
        if not self.keeps(request) or getattr(result, "left", None):
            return
        begun, now = self._step(request, ended=False), read_by(request)
        before = begun["read"] if begun else now
        # what lies on the Hub has its commit once it is downloaded; what lies here counts as it was before
        read = {what: now.get(what) if is_of_the_hub(identity) else identity for what, identity in before.items()}
        self._forget(request, ended=False)
        self._note(request, began=None, read=read, wrote=written_by(request, result))

    def forget(self, request: Any) -> None:
        """Count a step as not done, although an earlier run did it: it failed this time."""
        self._forget(request, ended=True)
        self._write()

    def _left(self, begun: dict[str, Any], began: Any, read: dict[str, str | None]) -> bool:
        """Whether an earlier run left unfinished work with the same inputs; resuming checks those on the Hub."""
        if None in (began, begun["began"]) or began == begun["began"] or begun["upcycle"] != upcycle.__version__:
            return False
        here = {what: identity for what, identity in begun["read"].items() if not is_of_the_hub(identity)}
        return all(read.get(what) == identity for what, identity in here.items())

    def _step(self, request: Any, *, ended: bool) -> dict[str, Any] | None:
        key = (command_of(request).name, _options(request), ended)
        return next((s for s in self._steps if (s["command"], s["request"], s["wrote"] is not None) == key), None)

    def _forget(self, request: Any, *, ended: bool) -> None:
        old = self._step(request, ended=ended)
        self._steps = [step for step in self._steps if step is not old]

    def _note(self, request: Any, **known: Any) -> None:
        """Put what is known of a step in front, and write the file."""
        self._forget(request, ended=known["wrote"] is not None)
        said = {"command": command_of(request).name, "request": _options(request)}
        step = {**said, "upcycle": upcycle.__version__, **known}
        self._steps = [step, *self._steps][:MAX_STEPS]
        self._write()

    def _write(self) -> None:
        value = {"format": _FORMAT, "recipe": self._name, "steps": self._steps}
        staged = staging_path(self._path)
        try:
            data = json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
            self._path.parent.mkdir(exist_ok=True)
            write_durably(staged, data)
            staged.replace(self._path)
        except (OSError, UnicodeEncodeError) as error:  # the latter: names of files that are no text
            if not self._warned:
                _log.warning("%s: cannot be written (%s), so the next run does this step again", self._path, error)
            self._warned = True


def remembered(name: str, *, again: bool = False) -> Done:
    """Return the memory of the recipe `name` in the current directory.

    It is empty, with a warning, if the file is damaged or belongs to another recipe.
    """
    path = DIRECTORY.absolute() / f"{_file_name(name)}.json"
    try:
        return Done(path, name, _read(path, name) if path.exists() else [], again=again)
    except CheckpointError as error:
        _log.warning("all steps are done again: %s", str(error)[:400])
        return Done(path, name, [], again=again)


def _read(path: Path, name: str) -> list[dict[str, Any]]:
    value = read_object(path)
    steps = value.get("steps")
    if value.get("format") != _FORMAT or value.get("recipe") != name or not isinstance(steps, list):
        raise CheckpointError("is no record of this recipe", where=path, expected=f"that of {name!r}")
    if not all(map(_is_step, steps)):
        raise CheckpointError("holds a step that is damaged", where=path)
    return steps[:MAX_STEPS]


def _is_step(value: Any) -> bool:
    if not isinstance(value, dict) or any(not isinstance(value.get(key), kind) for key, kind in _FIELDS.items()):
        return False
    return all(isinstance(identity, str | None) for identity in value["read"].values())


def _file_name(name: str) -> str:
    """Return a file name for the recipe `name`; characters that no file name should have become a hash."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60]
    return safe if safe == name else f"{safe}-{sha256_of(name.encode())[:8]}".lstrip("-")


def _options(request: Any) -> dict[str, Any]:
    """Return the options of a request that decide its result, as JSON gives them back."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(request).items()}
    return {name: value for name, value in values.items() if name not in _MANNER}
