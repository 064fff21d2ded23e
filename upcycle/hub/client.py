"""Reads models on the Hub: their configs and headers from afar, or all their files by way of the local cache.

The Hub's client is imported when it is needed and not before, since that takes a second.
"""

import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from upcycle.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from upcycle.checkpoint.header import LENGTH_BYTES, Header, header_length, parse_header
from upcycle.checkpoint.place import CARD_FILE
from upcycle.checkpoint.reader import (
    CHAT_TEMPLATE_FILES,
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    TOKENIZER_FILES,
    Directory,
    Files,
    check_present,
    is_plain_name,
    read_weight_map,
)
from upcycle.checkpoint.strict_json import MAX_JSON_BYTES, parse_object
from upcycle.errors import CheckpointError, InputError, UnreachableError, UpcycleError
from upcycle.hub.repository import Repository, explained, open_repository, split_id

if TYPE_CHECKING:
    from upcycle.hub.transfer import Transfer

SIDE_FILES = (CONFIG_FILE, GENERATION_FILE, *TOKENIZER_FILES, *CHAT_TEMPLATE_FILES)
"""Files that are downloaded with the weights, where a model has them."""

PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"

MAX_CARD_BYTES = 1_000_000

FIRST_READ = 8192
"""Bytes of a weight file that are read at first: the whole header of most shards."""

WORKERS = 8
"""Files that are loaded side by side, as many as the client itself would."""

_KEPT = "run it again, the download goes on where it stopped"
_REVISION = re.compile(r"[^\s~^:?*\[\\\x00-\x1f\x7f]+")  # git's rule for the names of branches and tags


def is_hub_id(model: str) -> bool:
    """Whether `model` has the form of a Hub id, `name`, `org/name` or either with `@revision`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    name, at, revision = model.partition("@")
    if at and (_REVISION.fullmatch(revision) is None or ".." in revision or revision.startswith("/")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network; read as the client reads it, for importing that takes time."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class HubFiles:
    """The files of a model that is not here: small ones are read whole, of weights only their headers."""

    repository: Repository

    @property
    def place(self) -> Path:
        """The Hub id, for messages."""
        return Path(self.repository.model)

    def has(self, name: str) -> bool:
        """Whether there is a file of that name at the top level."""
        return is_plain_name(name) and name in self.repository.sizes

    def names(self) -> list[str]:
        """Return the names of all files at the top level."""
        return sorted(filter(self.has, self.repository.sizes))

    def json(self, name: str) -> dict[str, Any]:
        """Return a JSON object; raise CheckpointError when it is not strict JSON, or not there."""
        size = self._size(name)
        if size > MAX_JSON_BYTES:
            raise CheckpointError(
                "JSON file too large", where=self.place / name, found=f"{size} bytes", expected="at most 32 MB"
            )
        return parse_object(self.repository.read(name, 0, size), self.place / name)

    def header(self, name: str) -> Header:
        """Return the header of a safetensors file; the tensors themselves are not touched."""
        size, path = self._size(name), self.place / name
        raw = self.repository.read(name, 0, min(FIRST_READ, size))
        end = LENGTH_BYTES + header_length(raw, size, path)
        if end > len(raw):
            raw += self.repository.read(name, len(raw), end)
        return parse_header(raw[:end], size, path)

    def _size(self, name: str) -> int:
        if not self.has(name):
            raise CheckpointError("there is no such file", where=self.place / name)
        return self.repository.sizes[name]


def remote(model: str) -> Files:
    """Return the files of a Hub id without downloading them, all at the commit that it means now.

    When the Hub cannot be asked, they are those in the local cache, where it holds the model. Raises InputError when
    the Hub has no such model or refuses it, UpcycleError when it cannot be reached.
    """
    try:
        return HubFiles(open_repository(model))
    except UnreachableError as error:
        return Directory(_cached(model, error))


def download(model: str, *, pickle: bool = False) -> Path:
    """Return a directory of the local cache with what is needed of a Hub id, downloaded where it is missing.

    That is the config, the weights that the index names, tokenizer, chat template and generation config, at the
    commit that the id means now; with `pickle` also pickled weights, where there are no others. What an interrupted
    download has brought stays and is used. Raises as `remote` does, and CheckpointError when there are no weights.
    """
    try:
        repository = open_repository(model)
    except UnreachableError as error:
        directory = _cached(model, error, pickle=pickle)
        _miss_tokenizer(model, Directory(directory))
        return directory
    files = HubFiles(repository)
    weights = weight_files(files, pickle=pickle)
    return _bring(repository, [name for name in SIDE_FILES if files.has(name)], weights)


def read_card(model: str) -> str | None:
    """Return the model card of a Hub id as it is, or None where it has none or it cannot be had."""
    try:
        repository = open_repository(model)
        if CARD_FILE not in repository.sizes:
            return None
        return repository.read(CARD_FILE, 0, min(repository.sizes[CARD_FILE], MAX_CARD_BYTES)).decode(
            "utf-8", "replace"
        )
    except UpcycleError:
        return None


def weight_files(files: Files, *, pickle: bool = False) -> list[str]:
    """Return the index, if there is one, and the files that hold the weights; raise CheckpointError for none.

    Of an adapter these are its config and its weights.
    """
    if files.has(ADAPTER_CONFIG) and files.has(ADAPTER_WEIGHTS) and not files.has(CONFIG_FILE):
        return [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    kinds = [(INDEX_FILE, SINGLE_FILE, ".safetensors"), (PICKLED_INDEX, PICKLED_FILE, ".bin")]
    for index, single, suffix in kinds if pickle else kinds[:1]:
        if files.has(index):
            shards = sorted(set(read_weight_map(files, index, suffix).values()))
            check_present(files, shards)
            return [index, *shards]
        if files.has(single):
            return [single]
    pickled = files.has(PICKLED_FILE) or files.has(PICKLED_INDEX)
    raise CheckpointError(
        "holds pickled weights only, which can run code when they are read" if pickled else "holds no weights",
        where=files.place,
        expected=f"{SINGLE_FILE} or {INDEX_FILE}",
    )


def _cached(model: str, reason: UnreachableError, *, pickle: bool = False) -> Path:
    """Return the snapshot in the client's cache; raise when it does not hold what is needed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, revision = split_id(model)
    try:
        wanted = [CONFIG_FILE, ADAPTER_CONFIG]
        found = snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=wanted)
        weight_files(Directory(Path(found)), pickle=pickle)
    except LocalEntryNotFoundError:
        message = f"{reason}, and it is neither a directory nor in the Hub cache"
    except CheckpointError:
        message = f"{reason}, and the Hub cache holds only a part of it"
    else:
        return Path(found)
    raise (InputError if is_offline() else UnreachableError)(message)


def _miss_tokenizer(model: str, files: Directory) -> None:
    """Warn where a cache has the weights and no tokenizer: other programs may have loaded the weights alone."""
    if not any(files.has(name) for name in TOKENIZER_FILES):
        logging.getLogger("upcycle").warning(
            "%s: the cache holds no tokenizer, and the Hub cannot be asked: the output will have none", model
        )


def _bring(repository: Repository, *groups: list[str]) -> Path:
    """Fetch files into the cache, one group after the other, and return the snapshot that they are in.

    Weights come last, so that a snapshot which has them has all.
    """
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    from upcycle.hub.transfer import Transfer

    model, total = repository.model, sum(repository.sizes[name] for group in groups for name in group)
    with tqdm(total=total, unit="B", unit_scale=True, desc=model, disable=None, delay=1) as bar:
        transfer = Transfer(repository, bar.update, Event())
        try:
            with explained(model):
                for group in groups:
                    _side_by_side(transfer, group)
                transfer.refer()
        except UnreachableError as error:
            raise UpcycleError("; ".join([str(error), *_kept(transfer)])) from None
        except OSError as error:
            message = f"{model}: {error.filename or 'download'}: {error.strerror or error}"
            raise UpcycleError("; ".join([message, *_kept(transfer)])) from None
        except BaseException as error:  # Ctrl-C and SIGTERM: whoever reports them can say what is left
            if not isinstance(error, UpcycleError) and transfer.began.is_set():
                error.add_note(_KEPT)
            raise
    return transfer.folder / "snapshots" / repository.commit


def _kept(transfer: "Transfer") -> list[str]:
    """Return the note that goes with an error, as a list; empty where nothing was being fetched."""
    return [_KEPT] if transfer.began.is_set() else []


def _side_by_side(transfer: "Transfer", names: list[str]) -> None:
    """Fetch several files at once; the first failure ends all, and the bytes that have arrived are kept."""
    with ThreadPoolExecutor(WORKERS) as pool:
        work = [pool.submit(transfer.fetch, name) for name in names]
        try:
            for done in as_completed(work):
                done.result()
        except BaseException:
            transfer.halt()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
