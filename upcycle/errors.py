"""Every error that upcycle raises on purpose.

    UpcycleError                 exit 1   the run failed, the request was right
    ├── StagingError             exit 1   the work was stopped by the disk or by another writer
    ├── UnreachableError         exit 1   the Hub could not be asked
    └── InputError               exit 2   the request or the input is wrong
        ├── CheckpointError      exit 2   files on disk are not a sound checkpoint
        ├── UnsupportedError     exit 2   a sound checkpoint that the target cannot express
        └── RequestError         exit 2   an option or a recipe that says something impossible

Only `cli` turns an error into an exit code. An `InputError` says what was found, what was expected and which
option helps; those three are attributes, so that tests and programs can read them without parsing the message.
"""

from pathlib import Path
from typing import Any


class UpcycleError(Exception):
    """Something failed although the request was right; exit code 1."""


class StagingError(UpcycleError):
    """The staging directory cannot be written, locked or moved into place."""


class UnreachableError(UpcycleError):
    """The Hub could not be asked, so that what lies in the cache is all there is."""


class InputError(UpcycleError):
    """The request or the input is wrong; exit code 2."""

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        """Compose `where: what; found ..., expected ...; hint` from the parts that are given."""
        self.what = what
        self.where = None if where is None else str(where)
        self.found = found
        self.expected = expected
        self.hint = hint
        super().__init__(self._message())

    def _message(self) -> str:
        compared = ", ".join(
            f"{label} {value}"
            for label, value in (("found", self.found), ("expected", self.expected))
            if value is not None
        )
        head = self.what if self.where is None else f"{self.where}: {self.what}"
        return "; ".join(part for part in (head, compared, self.hint) if part)


class CheckpointError(InputError):
    """The files on disk are not a sound checkpoint."""


class UnsupportedError(InputError):
    """The checkpoint is sound, but the target architecture cannot compute what it computes."""


class RequestError(InputError):
    """An option, a combination of options, or a recipe is wrong."""

    def __init__(self, what: str, *, option: str | None = None, **parts: Any) -> None:
        """As InputError; `option` is the field that is to blame, where it is one."""
        super().__init__(what, **parts)
        self.option = option
