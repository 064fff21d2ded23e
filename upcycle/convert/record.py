"""`verify.json`: what a verification found, kept beside the receipt that it is of."""

import os
from dataclasses import asdict
from pathlib import Path

from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.lineage import receipt_sha256, write_verification
from upcycle.checkpoint.place import VERIFICATION, VERIFICATION_FILE, is_verification
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.checkpoint.strict_json import without_nan
from upcycle.errors import CheckpointError, InputError, StagingError
from upcycle.plan.report import Report


class Record:
    """Where a verification is going to be recorded; made before it begins, since it may take long."""

    def __init__(self, directory: Path) -> None:
        """Raise InputError when the record could not be written, or would replace a file of someone else."""
        self._directory, path = directory, directory / VERIFICATION_FILE
        self._receipt = receipt_sha256(directory)  # of now: one that replaces it meanwhile was not verified
        if os.path.lexists(path) and not is_verification(path):
            raise InputError("is no record of a verification, so --record leaves it alone", where=path)
        if not os.access(directory, os.W_OK):
            raise InputError(f"{VERIFICATION_FILE} cannot be written there", where=directory, hint="leave --record out")
        self._weights = tuple(directory / name for name in sorted(open_checkpoint(directory).headers))
        self._seen = self._look()

    def write(self, report: Report) -> None:
        """Write what was found, its lines and figures, no time and no path, and the SHA-256 of the weights, read anew.

        Raises CheckpointError when those have changed meanwhile, StagingError when the disk fails.
        """
        try:
            weights = {path.name: sha256_of(path) for path in self._weights}
            changed = self._look() != self._seen
        except FileNotFoundError:
            changed = True
        except OSError as error:
            raise StagingError(f"{error.filename}: cannot be read ({error.strerror})") from error
        if changed:
            raise CheckpointError(
                "the weights changed while they were verified", where=self._directory, hint="verify them again"
            )
        entry = {
            "made": VERIFICATION,
            "receipt_sha256": self._receipt,
            "passed": report.passed,
            "lines": [asdict(line) for line in report.lines],
            "parity": without_nan(report.figures.get("parity", {})),
            "weights": weights,
        }
        try:
            write_verification(self._directory, entry)
        except OSError as error:
            place = self._directory / VERIFICATION_FILE
            raise StagingError(f"{place}: the verification could not be recorded ({error.strerror})") from error

    def _look(self) -> list[tuple[int, ...]]:
        """What tells the files of weights from others of their names."""
        facts = (path.stat() for path in self._weights)
        return [(fact.st_dev, fact.st_ino, fact.st_size, fact.st_mtime_ns) for fact in facts]
