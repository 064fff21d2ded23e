"""What the server answers about pull requests; a discussion is one without changes."""

import json
from collections.abc import Callable
from typing import Any

from tests.hub.access import writable, writer
from tests.hub.repos import Pull, Repo
from tests.hub.server import NAME, Handler

NUMBER = r"(\d+)"

DATE = "2024-01-01T00:00:00.000Z"


def told(repo: Repo, pull: Pull) -> dict[str, Any]:
    """A pull request as a list shows it."""
    return {
        "num": pull.number, "title": pull.title, "status": pull.status, "isPullRequest": pull.changes,
        "author": {"name": pull.author}, "createdAt": DATE, "repo": {"name": repo.name, "type": "model"},
    }  # fmt: skip


def event(number: int, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"{number:024x}", "type": kind, "author": {"name": "someone"}, "createdAt": DATE, "data": data}


def shown(answer: Handler, name: str) -> None:
    """Answer with a list, all on the first page."""
    repo = answer.repo(name)
    if repo is None:
        return
    wanted = {key: values[0] for key, values in answer.query.items()}
    state = {"open": {"open", "draft"}, "closed": {"closed", "merged"}}.get(wanted.get("status", "all"))
    kind = {"pull_request": True, "discussion": False}.get(wanted.get("type", "all"))
    found = [
        told(repo, pull)
        for pull in reversed(repo.pulls)
        if (state is None or pull.status in state)
        and (kind is None or pull.changes == kind)
        and wanted.get("author", pull.author) == pull.author
    ]
    answer.send_json({"discussions": found, "count": len(found), "start": 0, "numClosedDiscussions": 0})


def opened(answer: Handler, name: str) -> None:
    repo = answer.repo(name) if writer(answer) else None
    if repo is None:
        return
    asked = json.loads(answer.body)
    changes = bool(asked.get("pullRequest"))
    with answer.hub.writing:
        status = "draft" if changes else "open"
        pull = repo.pull(asked["title"], description=asked["description"], changes=changes, status=status)
    answer.send_json({"num": pull.number, "pullRequest": changes, "title": pull.title})


def find(answer: Handler, repo: Repo | None, number: str) -> Pull | None:
    """Return a pull request of a repository, or answer that there is none."""
    if repo is not None and not 0 < int(number) <= len(repo.pulls):
        answer.refuse(404, "", "Discussion not found")
        return None
    return repo.pulls[int(number) - 1] if repo else None


def details(answer: Handler, name: str, number: str) -> None:
    repo = answer.repo(name)
    pull = find(answer, repo, number)
    if repo is None or pull is None:
        return
    said = {"raw": pull.description, "html": "", "edited": False, "hidden": False, "history": []}
    comment = event(0, "comment", {"latest": {**said, "updatedAt": DATE, "author": {"name": pull.author}}, **said})
    changes = {"changes": {"base": "refs/heads/main", "mergeCommitId": pull.merged}, "filesWithConflicts": []}
    answer.send_json({**told(repo, pull), "events": [comment], **(changes if pull.changes else {}), "diff": ""})


def set_status(answer: Handler, name: str, number: str) -> None:
    pull = find(answer, writable(answer, name), number)
    if pull is not None:
        pull.status = json.loads(answer.body)["status"]
        answer.send_json({"newStatus": event(1, "status-change", {"status": pull.status})})


def merge(answer: Handler, name: str, number: str) -> None:
    repo = writable(answer, name)
    pull = find(answer, repo, number)
    if repo is None or pull is None:
        return
    with answer.hub.writing:
        if pull.status != "open" or not pull.changes:
            answer.refuse(400, "", f"A pull request that is {pull.status} cannot be merged")
            return
        repo.merge(pull)
    answer.send_json({})


PULLS: list[tuple[str, Callable[..., None]]] = [
    (rf"GET /api/models/{NAME}/discussions", shown),
    (rf"POST /api/models/{NAME}/discussions", opened),
    (rf"GET /api/models/{NAME}/discussions/{NUMBER}", details),
    (rf"POST /api/models/{NAME}/discussions/{NUMBER}/status", set_status),
    (rf"POST /api/models/{NAME}/discussions/{NUMBER}/merge", merge),
]
"""Method and path -> what answers."""
