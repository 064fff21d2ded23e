"""What a recipe has done, kept from one run to the next: steps whose inputs are unchanged are not done again.

    .upcycle/NAME.json    where upcycle is run: for every step its request, what it read and what it wrote

A step that ended has its files under `wrote`; one that began has none, and where it did not end the next run goes on
with it. The file decides which steps are left out and which are resumed, so one that is damaged costs time only.
"""

import json
import logging
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import upcycle
from upcycle import requests
from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.place import staging_path
from upcycle.checkpoint.strict_json import read_object
from upcycle.checkpoint.writer import write_durably
from upcycle.errors import CheckpointError
from upcycle.pipeline.grammar import command_of
from upcycle.pipeline.touched import beginnings, facts, is_of, is_of_the_hub, read_by, written_by

DIRECTORY = Path(".upcycle")
"""Where `upcycle` is run, as the paths of a recipe are."""

MAX_STEPS = 256
"""Steps that are remembered, of all the options that a recipe was run with; the newest."""

_FORMAT = 1
_MANNER = ("overwrite", "resume")  # how the work is done, not what comes of it
_KEPT = (requests.Convert, requests.Attach, requests.Train, requests.Merge, requests.Verify, requests.Plot)
"""Requests that need not be repeated. Plan and generate are: what they print is what is wanted of them. So is what
goes to the Hub, which is asked itself what is new."""
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
        self._told = False

    def keeps(self, request: Any) -> bool:
        """Whether a step is one that need not be repeated."""
        elsewhere = getattr(request, "dry_run", False) or getattr(request, "stream_to", None)
        return isinstance(request, _KEPT) and not elsewhere

    def has(self, request: Any) -> bool:
        """Whether a step was done, and what it read and wrote, and upcycle itself, are still what they were."""
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
        """Note that a step begins, and return its request: to be gone on with, where an earlier run left it."""
        if not self.keeps(request):
            return request
        begun, read = self._step(request, ended=False), read_by(request)
        began = beginnings(request) if hasattr(request, "resume") else None
        if isinstance(request, requests.Verify):  # which may fail this time
            self._forget(request, ended=True)
        if begun and self._left(begun, began, read) and is_of(request) and not self._again:
            request, began = replace(request, resume=True), begun["began"]
        self._note(request, began=began, read=read, wrote=None)
        return request

    def end(self, request: Any, result: Any) -> None:
        """Note that a step is done; one that waits for the other parts of its work is not."""
        if not self.keeps(request) or getattr(result, "left", None):
            return
        begun, now = self._step(request, ended=False), read_by(request)
        before = begun["read"] if begun else now
        # what lies on the Hub has its commit once it is downloaded; what lies here counts as it was before
        read = {what: now.get(what) if is_of_the_hub(identity) else identity for what, identity in before.items()}
        self._forget(request, ended=False)
        self._note(request, began=None, read=read, wrote=written_by(request, result))

    def _left(self, begun: dict[str, Any], began: Any, read: dict[str, str | None]) -> bool:
        """Whether an earlier run has left work that reads the same; what it has of the Hub the work itself knows."""
        if None in (began, begun["began"]) or began == begun["began"] or begun["upcycle"] != upcycle.__version__:
            return False
        here = {what: identity for what, identity in begun["read"].items() if not is_of_the_hub(identity)}
        return all(read.get(what) == identity for what, identity in here.items())

    def _step(self, request: Any, *, ended: bool) -> dict[str, Any] | None:
        key = (command_of(request), _said(request), ended)
        return next((s for s in self._steps if (s["command"], s["request"], s["wrote"] is not None) == key), None)

    def _forget(self, request: Any, *, ended: bool) -> None:
        old = self._step(request, ended=ended)
        self._steps = [step for step in self._steps if step is not old]

    def _note(self, request: Any, **known: Any) -> None:
        """Put what is known of a step in front, and write the file."""
        self._forget(request, ended=known["wrote"] is not None)
        step = {"command": command_of(request), "request": _said(request), "upcycle": upcycle.__version__, **known}
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
            if not self._told:
                _log.warning("%s: what is done cannot be noted (%s); the next run does it again", self._path, error)
            self._told = True


def remembered(name: str, *, again: bool = False) -> Done:
    """Return what the recipe called `name` has done in the current directory; nothing, with a warning, where the file
    is damaged or another recipe's.
    """
    path = DIRECTORY.absolute() / f"{_file_name(name)}.json"
    try:
        return Done(path, name, _read(path, name) if path.exists() else [], again=again)
    except CheckpointError as error:
        _log.warning("what was done before is not known, and is done again: %s", str(error)[:400])
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
    """The name of a recipe as that of a file: one that is not fit for it is told apart by a hash."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60]
    return safe if safe == name else f"{safe}-{sha256_of(name.encode())[:8]}".lstrip("-")


def _said(request: Any) -> dict[str, Any]:
    """All options of a request that decide what comes out, as JSON gives them back."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(request).items()}
    return {name: value for name, value in values.items() if name not in _MANNER}
