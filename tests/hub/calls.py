"""What tests ask of the real client: code that runs in its process, and folders held against what the Hub has."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.hub.client import Client
from tests.hub.repos import Repo

API = """
import json
from pathlib import Path
from huggingface_hub import CommitOperationAdd as Add, CommitOperationCopy as Copy, CommitOperationDelete as Delete
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

api, name = HfApi(), "someone/model"

def status(function, *given, **named):
    try:
        function(*given, **named)
    except HfHubHTTPError as error:
        return error.response.status_code, type(error).__name__, str(error)
    return 200, "", ""
"""

UPLOAD = API + "print(api.upload_folder(repo_id=name, folder_path={0!r}).oid)"
"""Uploads a folder; takes the path of it."""


def ask(user: Client, code: str) -> Any:
    """Run code after `API` that leaves its finding in `out`."""
    return json.loads(user.python(f"{API}{code}\nprint(json.dumps(out))").splitlines()[-1])


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def remote(repo: Repo, branch: str = "main") -> dict[str, str]:
    """The same of what a branch holds, .gitattributes apart."""
    head = repo.find(branch)
    assert head is not None
    return {path: blob.sha256 for path, blob in head.files.items() if path != ".gitattributes"}
