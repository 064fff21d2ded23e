"""Decides which names of files can be published, and which names a pattern of --include matches."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath, PureWindowsPath

from upcycle.checkpoint.reader import is_plain_name
from upcycle.errors import InputError


def is_sound(name: str) -> bool:
    """Whether a path, with "/" in it, is one on every platform and hidden nowhere, as secrets and caches are."""
    return all(is_plain_name(part) and not part.startswith(".") for part in name.split("/"))


def printable(name: str) -> str:
    """Return a name as it can be shown, be it no text."""
    text = name.encode(errors="backslashreplace").decode()
    return text if text.isprintable() else ascii(text)[1:-1]


def check_patterns(patterns: Sequence[str]) -> None:
    """Raise InputError for a pattern that leads out of the directory."""
    for pattern in patterns:
        rooted = PurePosixPath(pattern).is_absolute() or PureWindowsPath(pattern).anchor
        if rooted or ".." in pattern.split("/"):
            raise InputError(
                "--include leads out of the directory", found=printable(pattern), expected="such as 'runs/*.log'"
            )


def fits_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path fits a pattern, in which `*` stays inside of a name and `**` is any number of directories."""
    return any(_fits(name.split("/"), pattern.split("/")) for pattern in patterns)


def _fits(parts: list[str], wanted: list[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_fits(parts[start:], wanted[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])
