"""What the server answers about branches and history."""

import json
from collections.abc import Callable
from typing import Any

from tests.hub.access import writable
from tests.hub.repos import Commit
from tests.hub.server import NAME, REVISION, Handler


def references(answer: Handler, name: str) -> None:
    repo = answer.repo(name)
    if repo is None:
        return
    branches = [ref for ref in repo.refs if not ref.startswith("refs/")]
    found: dict[str, Any] = {
        "branches": [_reference(ref, f"refs/heads/{ref}", repo.refs[ref]) for ref in branches],
        "tags": [],
        "converts": [],
    }
    if "include_prs" in answer.query:
        pulls = [pull for pull in repo.pulls if pull.changes]
        found["pullRequests"] = [_reference(str(pull.number), pull.ref, repo.refs[pull.ref]) for pull in pulls]
    answer.send_json(found)


def _reference(name: str, ref: str, commit: str) -> dict[str, str]:
    return {"name": name, "ref": ref, "targetCommit": commit}


def create_branch(answer: Handler, name: str, branch: str) -> None:
    repo = writable(answer, name)
    if repo is None:
        return
    start = json.loads(answer.body or b"{}").get("startingPoint") or "main"
    with answer.hub.writing:
        commit = repo.find(start)
        if branch in repo.refs:
            answer.refuse(409, "", "Reference already exists")
        elif commit is None:
            answer.refuse(404, "RevisionNotFound", f"Invalid rev id: {start}")
        else:
            repo.refs[branch] = commit.id
            answer.send_json({}, 201)


def delete_branch(answer: Handler, name: str, branch: str) -> None:
    repo = writable(answer, name)
    if repo is None:
        return
    with answer.hub.writing:
        if branch == "main":
            answer.refuse(403, "", "Cannot delete the default branch")
        elif repo.refs.pop(branch, None) is None:
            answer.refuse(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        else:
            answer.send_json({})


def history(answer: Handler, name: str, revision: str) -> None:
    if found := answer.commit(name, revision):
        repo, commit = found
        answer.send_json([_told(step) for step in repo.history(commit)])


def _told(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.id, "title": commit.title, "message": commit.description, "date": "2024-01-01T00:00:00.000Z",
        "authors": [{"user": "someone"}],
    }  # fmt: skip


REFERENCES: list[tuple[str, Callable[..., None]]] = [
    (rf"GET /api/models/{NAME}/refs", references),
    (rf"POST /api/models/{NAME}/branch/{REVISION}", create_branch),
    (rf"DELETE /api/models/{NAME}/branch/{REVISION}", delete_branch),
    (rf"GET /api/models/{NAME}/commits/{REVISION}", history),
]
"""Method and path -> what answers."""
