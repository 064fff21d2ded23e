"""What the server answers to writes: who writes, a new repository, and commits."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hub.access import owner, role, writable
from tests.hub.chunks import Chunked
from tests.hub.repos import LFS_SIZE, LFS_SUFFIXES, Blob, Repo
from tests.hub.server import NAME, REVISION, Handler

MISSING = (
    "Your push was rejected because an LFS pointer pointed to a file that does not exist. For instance, this can "
    "happen if you used git push --no-verify to push your changes. Offending file: - "
)

Change = dict[str, bytes | Blob | None]
"""Path -> what is put there, None deletes."""


class RefusedError(Exception):
    """What a commit cannot hold."""


def whoami(answer: Handler) -> None:
    found = role(answer)
    if found is None:
        answer.refuse(401, "", "Invalid username or password.")
        return
    orgs = [{"type": "org", "name": name} for name in sorted(answer.hub.namespaces - {"someone"})]
    auth = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": found}}
    answer.send_json({"type": "user", "name": "someone", "orgs": orgs, "auth": auth})


def create(answer: Handler) -> None:
    asked = json.loads(answer.body)
    namespace = asked.get("organization") or "someone"
    if not owner(answer, namespace):
        return
    name = f"{namespace}/{asked['name']}"
    told = {"url": f"{answer.hub.url}/{name}", "name": name}
    with answer.hub.writing:
        if name in answer.hub.repos:
            message = "You already created this model repo"
            answer.send_json({**told, "error": message}, 409, {"X-Error-Message": message})
            return
        private = asked.get("visibility") == "private" or asked.get("private")
        answer.hub.repo(name, {".gitattributes": b""}, access="private" if private else "public")
    answer.send_json(told)


def validate_yaml(answer: Handler) -> None:
    answer.send_json({"errors": [], "warnings": []})


def preupload(answer: Handler, name: str, revision: str) -> None:
    repo = writable(answer, name, revision)
    if repo is None:
        return
    commit = repo.find(revision)
    if commit is None:
        answer.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    else:
        answer.send_json({"files": [_mode(commit.files, file) for file in json.loads(answer.body)["files"]]})


def _mode(known: dict[str, Blob], file: dict[str, Any]) -> dict[str, Any]:
    path, size = file["path"], file["size"]
    lfs = Path(path).suffix in LFS_SUFFIXES or size > LFS_SIZE
    there = known.get(path)
    oid = None if there is None else there.sha256 if there.is_lfs(path) else there.git_id
    return {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}


def commit(answer: Handler, name: str, revision: str) -> None:
    repo = writable(answer, name, revision)
    if repo is None:
        return
    lines = [json.loads(line) for line in answer.body.splitlines() if line]
    head = next(line["value"] for line in lines if line["key"] == "header")
    with answer.hub.writing:
        if revision not in repo.refs:
            answer.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif head.get("parentCommit") not in {None, repo.refs[revision]}:
            answer.refuse(412, "", "A commit has happened since. Please refresh and try again.")
        else:
            _commit(answer, repo, revision, head, lines)


def _commit(answer: Handler, repo: Repo, revision: str, head: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    changes: Change = {}
    try:
        for line in lines:
            changes |= _change(answer, repo, revision, line["key"], line["value"])
    except RefusedError as reason:
        answer.refuse(400, "", str(reason))
        return
    repo.xet |= {blob.sha256: blob.xet for blob in changes.values() if isinstance(blob, Chunked)}
    told: dict[str, Any] = {"success": True}
    title, description = head["summary"], head.get("description", "")
    if "create_pr" in answer.query:
        pull = repo.pull(title, description=description, status="open")
        revision = pull.ref
        told["pullRequestUrl"] = f"{answer.hub.url}/{repo.name}/discussions/{pull.number}"
    made = repo.commit(_corrupted(answer, changes), branch=revision, title=title, description=description)
    url = f"{answer.hub.url}/{repo.name}/commit/{made.id}"
    answer.send_json({**told, "commitOid": made.id, "commitUrl": url})


def _change(answer: Handler, repo: Repo, branch: str, key: str, value: dict[str, Any]) -> Change:
    """One line of a commit; raises RefusedError for a large file that is stored nowhere."""
    if key == "file":
        return {value["path"]: base64.b64decode(value["content"])}
    if key == "lfsFile":
        blob = answer.hub.find(value["oid"])
        if blob is None or value.get("size", blob.size) != blob.size:  # a copy comes without a size
            raise RefusedError(MISSING + value["path"])
        return {value["path"]: blob}
    if key == "deletedFile":
        return {value["path"]: None}
    if key == "deletedFolder":
        now = repo.find(branch)
        return {path: None for path in (now.files if now else ()) if path.startswith(f"{value['path'].rstrip('/')}/")}
    return {}


def _corrupted(answer: Handler, changes: Change) -> Change:
    """Return the changes with what a test planted for them."""
    for path, content in changes.items():
        for planted in answer.hub.corruptions:
            if content is None or planted.times <= 0 or not re.search(planted.pattern, path):
                continue
            planted.times -= 1
            blob = content if isinstance(content, Blob) else Blob(content)
            changes = {**changes, path: planted.damage(blob)}
            answer.hub.uploads.pop(blob.sha256, None)
    return changes


WRITES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /api/whoami-v2", whoami),
    (r"POST /api/repos/create", create),
    (r"POST /api/validate-yaml", validate_yaml),
    (rf"POST /api/models/{NAME}/preupload/{REVISION}", preupload),
    (rf"POST /api/models/{NAME}/commit/{REVISION}", commit),
]
"""Method and path -> what answers."""
