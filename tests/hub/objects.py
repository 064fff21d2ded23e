"""What the server answers to large files by LFS; they go to disk while they are hashed, whole or in parts."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.hub.access import writer
from tests.hub.body import PIECE
from tests.hub.hub import Hub
from tests.hub.repos import Blob
from tests.hub.server import NAME, Handler

OID, PART = "([0-9a-f]{64})", r"(\d+)"


def batch(answer: Handler, name: str) -> None:
    if not writer(answer) or answer.repo(name) is None:
        return
    objects = []
    for wanted in json.loads(answer.body)["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in answer.hub.uploads:
            verify = {"href": f"{answer.hub.url}/{name}.git/info/lfs/objects/verify"}
            entry["actions"] = {"upload": _upload(answer.hub, **entry), "verify": verify}
        objects.append(entry)
    answer.send_json({"transfer": "basic", "objects": objects})


def _upload(hub: Hub, oid: str, size: int) -> dict[str, Any]:
    """Where a client is to put an object, in one go or in parts."""
    if hub.part_size is None or size <= hub.part_size:
        return {"href": f"{hub.storage}/upload/{oid}"}
    parts = range(1, -(-size // hub.part_size) + 1)
    places = {str(part): f"{hub.storage}/upload/{oid}/{part}" for part in parts}
    return {"href": f"{hub.url}/complete/{oid}", "header": {"chunk_size": str(hub.part_size), **places}}


def write(hub: Hub, pieces: Iterable[bytes]) -> tuple[Path, str]:
    """Write to a new file in the store; return its path and the SHA-256."""
    (hub.store / "lfs").mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=hub.store / "lfs", prefix="coming.", delete=False) as file:
        try:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
        except BaseException:
            Path(file.name).unlink()
            raise
    return Path(file.name), digest.hexdigest()


def keep(hub: Hub, oid: str, pieces: Iterable[bytes]) -> bool:
    """Store an object if it is what it is called."""
    path, found = write(hub, pieces)
    if found != oid:
        path.unlink()
        return False
    hub.uploads[oid] = Blob(path.rename(hub.store / "lfs" / oid), sha256=oid)
    return True


def put(answer: Handler, oid: str) -> None:
    if keep(answer.hub, oid, answer.upload):
        answer.send_json({})
    else:
        answer.send_json({"error": "BadDigest"}, 400)


def put_part(answer: Handler, oid: str, part: str) -> None:
    path, found = write(answer.hub, answer.upload)
    path.rename(answer.hub.store / "lfs" / f"{oid}.{part}")
    answer.send_json({}, headers={"ETag": f'"{found}"'})


def complete(answer: Handler, oid: str) -> None:
    """Make one object of its parts."""
    named = json.loads(answer.body)["parts"]
    paths = [answer.hub.store / "lfs" / f"{oid}.{part['partNumber']}" for part in named]
    good = all(path.exists() for path in paths) and keep(answer.hub, oid, _joined(paths))
    for path in paths:
        path.unlink(missing_ok=True)
    answer.send_json({} if good else {"error": "BadDigest"}, 200 if good else 400)


def _joined(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece


def verify(answer: Handler, _name: str) -> None:
    wanted = json.loads(answer.body)
    blob = answer.hub.uploads.get(wanted["oid"])
    answer.send_json({}, 200 if blob is not None and blob.size == wanted["size"] else 404)


OBJECTS: list[tuple[str, Callable[..., None]]] = [
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", batch),
    (rf"POST /{NAME}\.git/info/lfs/objects/verify", verify),
    (rf"PUT /upload/{OID}", put),
    (rf"PUT /upload/{OID}/{PART}", put_part),
    (rf"POST /complete/{OID}", complete),
]
"""Method and path -> what answers."""
