"""From a plan to a directory: staged beside its place, watched, complete before it gets its name."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upcycle.checkpoint.header import read_header
from upcycle.checkpoint.journal import WHOLE, Part
from upcycle.checkpoint.place import RECEIPT_FILE, check_out, staging_path
from upcycle.checkpoint.reader import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, hub_blob, open_checkpoint
from upcycle.checkpoint.staging import Staging, finish_commit, open_staging, sweep
from upcycle.checkpoint.strict_json import read_object
from upcycle.checkpoint.writer import write_durably
from upcycle.errors import CheckpointError, InputError, StagingError, UpcycleError
from upcycle.plan.execute import Advance, check_space, execute, is_done, share
from upcycle.plan.plan import Plan, source_files
from upcycle.plan.receipt import read_receipt

MAX_WORKERS = 8
"""More threads than this do not make a disk faster."""

WriteReceipt = Callable[[Mapping[str, str], Mapping[str, bytes]], bytes]
"""Given the SHA-256 of the drawn and computed tensors, and everything else written beside the weights."""


@dataclass(frozen=True, slots=True)
class Making:
    """Where and how a plan is carried out."""

    out: Path  # appears by one rename when everything is on disk
    models: tuple[Path, ...]  # directories that are read, which `out` must not touch; the first is named in messages
    workers: int
    part: Part = WHOLE
    overwrite: bool = False
    resume: bool = False
    check_finite: bool = False
    beside: Mapping[str, bytes] = field(default_factory=dict)  # more files to write, which the plan does not speak of

    def check_out(self) -> None:
        """Raise InputError when `out` is no place for an output; see `upcycle.checkpoint.place.check_out`."""
        check_out(self.out, self.models, overwrite=self.overwrite)


def make(
    plan: Plan,
    making: Making,
    receipt: WriteReceipt,
    start: Callable[[int], Advance],
    prove: Callable[[Path], None] = lambda _: None,
) -> tuple[str, ...]:
    """Carry out `plan`, or a part of it; return the shards that other parts of the work have yet to write.

    `start` is called with the bytes to write once all checks have passed, and returns what is told the bytes as they
    are written. `prove` is called with the complete directory before it gets its name, and what it raises keeps it
    from that. Raises InputError before a byte is written, CheckpointError when what is read changes meanwhile,
    StagingError when the disk fails; what was interrupted stays in `OUT.partial` for `resume`.
    """
    out, part = making.out, making.part
    shards = share(plan, part)
    check = watch(plan, making.models[0])
    fingerprint = {"plan": plan.hash, "parts": part.count, **identities(plan)}
    if not shards:  # more parts than shards: the others may be done before this one begins
        return tuple(shard.name for shard in plan.shards)
    again = making.resume or part.count > 1
    try:
        if again and (finish_commit(out, fingerprint) or _is_complete(out, plan)):
            sweep(out, fingerprint)
            return ()
        making.check_out()
        with open_staging(out, fingerprint, part=part, resume=making.resume, overwrite=making.overwrite) as staging:
            check_space(shards, staging)
            advance = start(sum(shard.size for shard in shards))
            execute(shards, staging, workers=making.workers, finite=making.check_finite, advance=advance, check=check)
            check()
            return _join(staging, plan, making.beside, receipt, prove)
    except OSError as error:
        place = staging_path(out) if os.path.lexists(staging_path(out)) else out
        raise StagingError("; ".join([f"{error.filename or place}: {error.strerror}", *_kept(out)])) from error
    except BaseException as error:  # Ctrl-C and SIGTERM: whoever reports them can say what is left
        if not isinstance(error, UpcycleError):
            for note in _kept(out):
                error.add_note(note)
        raise


def output_path(out: str) -> Path:
    """Return the path of the output that is called `out`; `~` is the user's home."""
    try:
        return Path(out).expanduser()
    except RuntimeError as error:  # the home of nobody
        raise InputError(f"is no place for an output ({error})", where=out) from None


def worker_count(asked: int = 0) -> int:
    """Return how many threads carry out a plan: those asked for, or as many as help."""
    return asked or min(MAX_WORKERS, os.cpu_count() or 1)


def watch(plan: Plan, directory: Path) -> Callable[[], None]:
    """Return what raises CheckpointError when a file that `plan` reads is no longer the one that was planned with.

    The headers are read once more after the first look, for a file may have been replaced in between.
    """
    files = [*source_files(plan.shards), *plan.files.values()]

    def look() -> list[tuple[int, ...]]:
        facts = (path.stat() for path in files)
        return [(fact.st_dev, fact.st_ino, fact.st_size, fact.st_mtime_ns) for fact in facts]

    def check() -> None:
        if look() != first:
            raise CheckpointError("the model changed while the output was written", where=directory, hint="start again")

    first = look()
    headers = {path.name: read_header(path).sha256 for path in source_files(plan.shards)}
    if any(plan.sources[name]["header_sha256"] != digest for name, digest in headers.items()):
        raise CheckpointError("the model changed while it was planned", where=directory, hint="start again")
    return check


def _is_complete(out: Path, plan: Plan) -> bool:
    """Whether `out` holds just what `plan` would make of the model as it is now: every tensor and file is compared.

    Equal plans are not enough, for a fine-tune has the headers of its model.
    """
    if not (out / RECEIPT_FILE).is_file() or read_object(out / RECEIPT_FILE).get("plan") != plan.hash:
        return False
    from upcycle.plan.compare import compare_tensors

    made = open_checkpoint(out)
    if any(not (out / name).is_file() or (out / name).read_bytes() != data for name, data in side_files(plan).items()):
        return False
    found = compare_tensors(plan, made, read_receipt(made), MAX_WORKERS, lambda _: None)
    return found.sound and not found.redrawn


def _join(
    staging: Staging, plan: Plan, beside: Mapping[str, bytes], receipt: WriteReceipt, prove: Callable[[Path], None]
) -> tuple[str, ...]:
    """If every shard is there, write what stands beside them and give the output its name; return those still missing.

    The last part to finish does it; the lock lets the others look only before or after.
    """
    with staging.joined() as done:
        if done is None:  # another part was last
            return ()
        left = tuple(shard.name for shard in plan.shards if not is_done(shard, staging))
        if left:
            return left
        hashes = {name: digest for shard in plan.shards for name, digest in sorted(done[shard.name].items())}
        files = {**side_files(plan), **beside}
        for name, data in {**files, RECEIPT_FILE: receipt(hashes, files)}.items():
            write_durably(staging.path / name, data)
        prove(staging.path)
        staging.commit()
    return ()


def _kept(out: Path) -> list[str]:
    """What is left of work that was cut off, as a sentence; none when nothing is."""
    staging = staging_path(out)
    return (
        [f"what is finished is kept in {staging}, and --resume continues from it"] if os.path.lexists(staging) else []
    )


def identities(plan: Plan) -> dict[str, Any]:
    """What tells the files that are read from others of their names: work that is resumed must not mix two versions of
    a model, and parts on several machines must read the same one.

    In the Hub's cache the blob's name, its hash, wherever the cache is; elsewhere when the file was last changed.
    """
    files = {path.name: path for path in source_files(plan.shards)} | dict(plan.files)
    return {
        f"blob of {name}" if (blob := hub_blob(path)) else f"mtime of {name}": blob or path.stat().st_mtime_ns
        for name, path in sorted(files.items())
    }


def side_files(plan: Plan) -> dict[str, bytes]:
    """What stands beside the weights: config, index, and the tokenizer's and generation's files byte for byte."""
    files = {name: path.read_bytes() for name, path in plan.files.items()}
    if [shard.name for shard in plan.shards] != [SINGLE_FILE]:
        total = sum(write.nbytes for write in plan.writes)
        files[INDEX_FILE] = _json({"metadata": {"total_size": total}, "weight_map": plan.weight_map()})
    return {**files, CONFIG_FILE: _json(dict(plan.config))}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
