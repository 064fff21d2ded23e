"""Holds the files of an output against its records: the hashes in its receipt, and of the weights in verify.json."""

from collections.abc import Mapping
from pathlib import Path

from upcycle.checkpoint.adapter import ADAPTER_WEIGHTS
from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.header import Header
from upcycle.checkpoint.lineage import receipt_sha256
from upcycle.checkpoint.place import RECEIPT_FILE, VERIFICATION, VERIFICATION_FILE
from upcycle.checkpoint.reader import inside, is_plain_name
from upcycle.checkpoint.strict_json import read_object
from upcycle.errors import CheckpointError

VERIFY_AGAIN = f"verify again with --record, or remove {VERIFICATION_FILE}"


def check_receipt(directory: Path, headers: Mapping[str, Header]) -> None:
    """Raise CheckpointError unless the files that a receipt names are there, as it says that they were written.

    Of a model's weights it knows the headers, which are compared, and hashes of what was computed, which are not: that
    every number is as it was written is for `upcycle verify --record` to say. All other files are compared whole.
    """
    path = directory / RECEIPT_FILE
    if not path.is_file():
        return
    files = read_object(path).get("files")
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise CheckpointError("damaged receipt", where=path, expected="files")
    for name, digest in sorted(files.items()):
        found = headers[name].sha256 if name in headers else _sha256(directory, name)
        whole = _sha256(directory, name) if name == ADAPTER_WEIGHTS else None  # of adapters all of it is hashed
        if digest not in (found, whole):
            raise CheckpointError(
                f"{name} is not what the receipt says that it was", where=directory,
                found=f"SHA-256 {found[:16]}" if found else "no such file", expected=str(digest)[:16],
                hint=f"make it again, or remove {RECEIPT_FILE} to publish it without its record",
            )  # fmt: skip
    strange = sorted(headers.keys() - files.keys())
    if strange:
        raise CheckpointError("weights are there that the receipt does not name", where=directory, found=strange[0])


def verified_weights(directory: Path, headers: Mapping[str, Header]) -> Mapping[str, str] | None:
    """Return the SHA-256 of the weights that were verified, as far as that is told; None where nothing that counts is.

    A verification counts for the receipt that it names. Raises CheckpointError when it is of other weight files.
    """
    if not all(inside(directory, name).is_file() for name in (VERIFICATION_FILE, RECEIPT_FILE)):
        return None
    said = read_object(directory / VERIFICATION_FILE)
    if said.get("made") != VERIFICATION or said.get("receipt_sha256") != receipt_sha256(directory):
        return None
    weights = said.get("weights") or {}
    if not isinstance(weights, dict) or not all(isinstance(digest, str) for digest in weights.values()):
        raise CheckpointError("damaged verification", where=directory / VERIFICATION_FILE, hint=VERIFY_AGAIN)
    strange = sorted(weights.keys() ^ headers.keys()) if weights else []
    if strange:
        raise CheckpointError(
            "are not the weights that were verified", where=directory, found=strange[0], hint=VERIFY_AGAIN
        )
    return weights


def _sha256(directory: Path, name: str) -> str | None:
    return sha256_of(directory / name) if is_plain_name(name) and (directory / name).is_file() else None
