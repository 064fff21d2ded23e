"""Finds the same file in two places of the data: under another name, as a link, or as a copy.

Text that is held out, or that the loss is measured on, must not be trained on.
"""

import filecmp
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from upcycle.errors import InputError
from upcycle.text.records import Source

_log = logging.getLogger("upcycle")


def check_measured(trained: Sequence[Source], measured: Sequence[Source]) -> None:
    """Raise InputError when a file or a data set that the loss is measured on is trained on too."""
    seen = _Seen()
    for name, path in _places(trained):
        seen.add(name, path)
    for name, path in _places(measured):
        if (first := seen.find(name, path)) is not None:
            raise InputError(
                "is trained on too, so that the loss measured on it says nothing of other text", where=name,
                found=f"the same in --eval-data as {first} in --data",
                hint="take it out of --data, or instead of --eval-data hold a part of the data out with --eval-split",
            )  # fmt: skip


def check_twice(sources: Sequence[Source], *, held_out: bool) -> None:
    """Raise InputError for a file that is in the data twice when a part is held out; else say that it counts twice."""
    seen = _Seen()
    for name, path in _places(sources):
        first = seen.find(name, path)
        if first is not None and held_out:
            raise InputError(
                "is in the data twice, so that text held out of one is trained on in the other", where=name,
                found=f"the same as {first}", hint="name it once, with a --data-weight, or measure on --eval-data",
            )  # fmt: skip
        if first is not None:
            _log.warning("%s is the same as %s: both are trained on, its text twice as often as other", name, first)
        seen.add(name, path)


def _places(sources: Sequence[Source]) -> Iterator[tuple[str, Path | None]]:
    """The files of sources; a data set on the Hub has only a name."""
    for source in sources:
        paths: Sequence[Path] | None = getattr(source, "paths", None)
        yield from [(source.name, None)] if paths is None else ((str(path), path) for path in paths)


class _Seen:
    """Files, sorted by size: only those of one size are compared, byte by byte and only until they differ."""

    def __init__(self) -> None:
        self._by_size: dict[int, list[Path]] = {}
        self._names: set[str] = set()

    def add(self, name: str, path: Path | None) -> None:
        if path is None:
            self._names.add(name)
        else:
            self._by_size.setdefault(path.stat().st_size, []).append(path)

    def find(self, name: str, path: Path | None) -> str | None:
        """The name of what was added before and holds the same, or None."""
        if path is None:
            return name if name in self._names else None
        others = self._by_size.get(path.stat().st_size, [])
        return next((str(other) for other in others if _same(other, path)), None)


def _same(first: Path, second: Path) -> bool:
    return first.samefile(second) or filecmp.cmp(first, second, shallow=False)
