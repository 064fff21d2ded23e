"""Who may do what: the tokens there are, and what is answered to the others."""

from typing import TYPE_CHECKING

from tests.hub.repos import Repo

if TYPE_CHECKING:
    from tests.hub.server import Handler

TOKEN = "hf_loopback"
"""Opens gated and private repositories, and writes to those of its holder and of the organisation `org`."""

READ_TOKEN = "hf_loopback_read"
"""Opens them too, and writes nowhere."""

ROLES = {f"Bearer {TOKEN}": "write", f"Bearer {READ_TOKEN}": "read"}


def role(answer: "Handler") -> str | None:
    """Return what the token of a request is for, None without a known one."""
    return ROLES.get(answer.headers.get("Authorization", ""))


def writer(answer: "Handler") -> bool:
    """Tell whether a request has a token that writes; otherwise answer why not."""
    found = role(answer)
    if found == "read":
        answer.refuse(403, "", "Forbidden: you must use a write token to upload to a repository.")
    elif found is None and "Authorization" in answer.headers:
        answer.refuse(401, "", "Invalid credentials in Authorization header")
    elif found is None:
        answer.refuse(401, "", "Invalid username or password.")
    return found == "write"


def owner(answer: "Handler", namespace: str) -> bool:
    """Tell whether a request may make repositories in a namespace; otherwise answer why not."""
    if not writer(answer):
        return False
    if namespace not in answer.hub.namespaces:
        message = f'You don\'t have the rights to create a model under the namespace "{namespace}"'
        answer.refuse(403, "", message)
        return False
    return True


def writable(answer: "Handler", name: str, revision: str = "main") -> Repo | None:
    """Return the repository that a request may write to, or answer why not; a pull request anyone may open."""
    if not writer(answer):
        return None
    repo = answer.repo(name)
    pull = "create_pr" in answer.query or revision.startswith("refs/pr/")
    if repo is None or pull or name.split("/")[0] in answer.hub.namespaces:
        return repo
    message = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
    answer.refuse(403, "", message)
    return None
