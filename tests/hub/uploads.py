"""What the server answers to writes: a new repository, large files by LFS, and commits.

Files of the chunk store are written to disk by the client itself; of those the server knows name, size and hash.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hub.repos import LFS_SIZE, LFS_SUFFIXES, Blob, Repo
from tests.hub.server import NAME, REVISION, Handler


class Unseen(Blob):
    """A large file that went to the chunk store past the server."""

    def __init__(self, oid: str, size: int) -> None:
        super().__init__(b"")
        self.size = size
        self.__dict__["sha256"] = oid
        self.__dict__["git_id"] = hashlib.sha1(self.pointer, usedforsecurity=False).hexdigest()


def whoami(answer: Handler) -> None:
    if answer.has_token():
        answer.send_json({"type": "user", "name": "someone", "orgs": [], "auth": {}})
    else:
        answer.refuse(401, "", "Invalid username or password.")


def allowed(answer: Handler, name: str) -> Repo | None:
    """Return the repository that may be written with the request's token, or answer why not."""
    if not answer.has_token():
        answer.refuse(401, "", "Invalid username or password.")
        return None
    return answer.repo(name)


def create(answer: Handler) -> None:
    if not answer.has_token():
        answer.refuse(401, "", "Invalid username or password.")
        return
    asked = json.loads(answer.body)
    name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
    exists = name in answer.hub.repos
    if not exists:
        access = "private" if asked.get("visibility") == "private" or asked.get("private") else "public"
        answer.hub.repo(name, {".gitattributes": b""}, access=access)
    answer.send_json({"url": f"{answer.hub.url}/{name}", "name": name}, 409 if exists else 200)


def validate_yaml(answer: Handler) -> None:
    answer.send_json({"errors": [], "warnings": []})


def preupload(answer: Handler, name: str, revision: str) -> None:
    repo = allowed(answer, name)
    if repo is None:
        return
    commit = repo.find(revision)
    known = commit.files if commit else {}
    answer.send_json({"files": [_mode(known, file) for file in json.loads(answer.body)["files"]]})


def _mode(known: dict[str, Blob], file: dict[str, Any]) -> dict[str, Any]:
    path, size = file["path"], file["size"]
    lfs = Path(path).suffix in LFS_SUFFIXES or size > LFS_SIZE
    there = known.get(path)
    oid = None if there is None else there.sha256 if there.is_lfs(path) else there.git_id
    return {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}


def lfs_batch(answer: Handler, name: str) -> None:
    if allowed(answer, name) is None:
        return
    objects = []
    for wanted in json.loads(answer.body)["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in answer.hub.uploads:
            entry["actions"] = {
                "upload": {"href": f"{answer.hub.storage}/upload/{wanted['oid']}"},
                "verify": {"href": f"{answer.hub.url}/{name}.git/info/lfs/objects/verify"},
            }
        objects.append(entry)
    answer.send_json({"transfer": "basic", "objects": objects})


def put(answer: Handler, oid: str) -> None:
    good = hashlib.sha256(answer.body).hexdigest() == oid
    if good:
        answer.hub.uploads[oid] = Blob(answer.body)
    answer.send_json({}, 200 if good else 400)


def verify(answer: Handler, _name: str) -> None:
    wanted = json.loads(answer.body)
    blob = answer.hub.uploads.get(wanted["oid"])
    answer.send_json({}, 200 if blob is not None and blob.size == wanted["size"] else 404)


def commit(answer: Handler, name: str, revision: str) -> None:
    repo = allowed(answer, name)
    if repo is None:
        return
    lines = [json.loads(line) for line in answer.body.splitlines() if line]
    head = next(line["value"] for line in lines if line["key"] == "header")
    parent = head.get("parentCommit")
    if parent is not None and parent != repo.refs.get(revision):
        answer.refuse(412, "", "A commit has happened since.")
        return
    changes: dict[str, Any] = {}
    for line in lines:
        changes |= _changes(answer, repo, revision, line["key"], line["value"])
    made = repo.commit(changes, branch=revision, title=head["summary"])
    answer.send_json({"success": True, "commitOid": made.id, "commitUrl": f"{answer.hub.url}/{name}/commit/{made.id}"})


def _changes(answer: Handler, repo: Repo, branch: str, key: str, value: dict[str, Any]) -> dict[str, Any]:
    """One line of a commit as files that are put or, with None, deleted."""
    if key == "file":
        return {value["path"]: base64.b64decode(value["content"])}
    if key == "lfsFile":
        return {value["path"]: answer.hub.uploads.get(value["oid"]) or Unseen(value["oid"], value["size"])}
    if key == "deletedFile":
        return {value["path"]: None}
    if key == "deletedFolder":
        now = repo.find(branch)
        return {path: None for path in (now.files if now else ()) if path.startswith(f"{value['path'].rstrip('/')}/")}
    return {}


WRITES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /api/whoami-v2", whoami),
    (r"POST /api/repos/create", create),
    (r"POST /api/validate-yaml", validate_yaml),
    (rf"POST /api/models/{NAME}/preupload/{REVISION}", preupload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", lfs_batch),
    (rf"POST /{NAME}\.git/info/lfs/objects/verify", verify),
    (r"PUT /upload/([0-9a-f]{64})", put),
    (rf"POST /api/models/{NAME}/commit/{REVISION}", commit),
]
"""Method and path -> what answers."""
