"""Writes to a repository on the Hub: creates it, its branches and commits, and uploads large files.

Nothing here waits or tries again by itself: `attempts` does, around a whole piece of work that first looks at what the
repository holds. So work that failed in the middle goes on where a second run of it would.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from upcycle.errors import InputError, UnreachableError
from upcycle.hub.failures import LOGIN, explained_write
from upcycle.hub.repository import Repository, open_repository

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

MAIN = "main"
WAITS = (1, 2, 4, 8)
"""Seconds before a piece of work is tried again; the client has tried for 11 to 24 seconds before that."""

_PATIENCE = 0.2
"""Seconds after which a signal is seen where waiting itself hides it (Windows)."""

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A model repository that is written to with the user's token."""

    repo: str  # org/name
    owners: frozenset[str] = frozenset()  # the user, and the organisations of the user

    @staticmethod
    def of(repo: str) -> "Target":
        """Return the repository of a Hub id, whose owner is the user where it names none; ask the Hub once.

        Raises InputError when there is no token that the Hub knows, or no such name can be.
        """
        from huggingface_hub import constants, get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(repo)
        except HFValidationError:
            raise InputError("is no name of a repository", where=repo, expected="org/name, or name") from None
        if constants.is_offline_mode():
            raise InputError(f"{repo}: the Hub must not be asked (HF_HUB_OFFLINE is set)", hint="unset it to push")
        if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            raise InputError(f"{repo}: HF_HUB_DISABLE_IMPLICIT_TOKEN keeps the token back", hint="unset it to push")
        token = get_token()
        if token is None:
            raise InputError(f"{repo}: there is no token to write with", hint=LOGIN)
        if not token.isascii():
            raise InputError(f"{repo}: the token holds what no token has", hint=LOGIN)
        user, organisations = _whoami(repo)
        return Target(repo if "/" in repo else f"{user}/{repo}", frozenset((user, *organisations)))

    @cached_property
    def api(self) -> "HfApi":
        """The client."""
        from huggingface_hub import HfApi

        return HfApi()

    def find(self) -> Repository | None:
        """Return what is on main, or None where there is no such repository."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with explained_write(self.repo):
            try:
                self.api.repo_info(self.repo)
            except RepositoryNotFoundError as error:
                if error.response.status_code == 401:
                    raise
                return None
        return self.state(MAIN)

    def state(self, revision: str) -> Repository:
        """Return what is there now, on a branch or a pull request's ref."""
        return open_repository(f"{self.repo}@{revision}")

    def create(self, *, private: bool) -> None:
        """Make the repository; it may be there already."""
        with explained_write(self.repo):
            self.api.create_repo(self.repo, private=private, exist_ok=True)

    def has(self, branch: str) -> bool:
        """Whether there is a branch, or a pull request's ref, of that name."""
        with explained_write(self.repo):
            return self._has(branch)

    def branch(self, name: str) -> None:
        """Make a branch at the head of main, unless it is there; raise InputError for a pull request that is not."""
        with explained_write(self.repo):
            if name == MAIN or self._has(name):
                return
            if name.startswith("refs/"):
                raise InputError(f"{self.repo}: there is no {name}", hint="--create-pr opens a pull request")
            self.api.create_branch(self.repo, branch=name, exist_ok=True)

    def remove_branch(self, name: str) -> None:
        """Remove a branch, if it is there."""
        with explained_write(self.repo):
            if self._has(name):
                self.api.delete_branch(self.repo, branch=name)

    def upload(self, additions: "Sequence[CommitOperationAdd]", revision: str, *, create_pr: bool) -> None:
        """Store the content of large files, and know their hashes after it; what is stored already is not sent."""
        with explained_write(self.repo), _bars():
            _aside(
                lambda: self.api.preupload_lfs_files(
                    self.repo, additions, revision=revision, create_pr=create_pr, free_memory=False
                )
            )

    def commit(
        self, operations: Sequence[Any], revision: str, parent: str, *, title: str, description: str, create_pr: bool
    ) -> Any:
        """Commit on top of `parent`, which must still be the newest; return the client's CommitInfo."""
        with explained_write(self.repo):
            return self.api.create_commit(
                self.repo, operations, commit_message=title, commit_description=description, revision=revision,
                parent_commit=parent, create_pr=create_pr,
            )  # fmt: skip

    def own_pull_request(self, title: str) -> str | None:
        """Return the ref of an open pull request of this user with that title, the newest."""
        with explained_write(self.repo):
            found = [
                discussion.num
                for discussion in self.api.get_repo_discussions(
                    self.repo, author=_whoami(self.repo)[0], discussion_type="pull_request", discussion_status="open"
                )
                if discussion.is_pull_request and discussion.title == title
            ]
        return f"refs/pr/{max(found)}" if found else None

    def marked(self, description: str) -> str | None:
        """Return the newest commit on main with that description."""
        with explained_write(self.repo):
            commits = self.api.list_repo_commits(self.repo, revision=MAIN)
        return next((commit.commit_id for commit in commits if commit.message.strip() == description), None)

    def url(self, revision: str) -> str:
        """Where people look at it."""
        if revision.startswith("refs/pr/"):
            return f"{self.api.endpoint}/{self.repo}/discussions/{revision.removeprefix('refs/pr/')}"
        return f"{self.api.endpoint}/{self.repo}" + ("" if revision == MAIN else f"/tree/{revision}")

    def _has(self, branch: str) -> bool:
        refs = self.api.list_repo_refs(self.repo, include_pull_requests=branch.startswith("refs/pr/"))
        return any(branch in (ref.name, ref.ref) for ref in [*refs.branches, *(refs.pull_requests or [])])


def attempts(work: Callable[[], T]) -> T:
    """Return what `work` does, done anew when the Hub was busy, broken or not reached, or somebody else committed.

    Raises UnreachableError when that does not pass. A warning comes before every further attempt.
    """
    for seconds in WAITS:
        try:
            return work()
        except UnreachableError as error:
            logging.getLogger("upcycle").warning("%s; trying again in %s s", error, seconds)
            time.sleep(seconds)
    return work()


def _aside(work: Callable[[], object]) -> None:
    """Do `work` in a daemon thread: the client's own threads would go on uploading a file after Ctrl-C."""
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    while not future.done():
        wait([future], timeout=_PATIENCE)
    future.result()


@contextmanager
def _bars() -> Iterator[None]:
    """Let the client show its progress on a terminal, and nowhere else."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _whoami(repo: str) -> tuple[str, list[str]]:
    """The user's name, and those of the user's organisations."""
    from huggingface_hub import HfApi

    with explained_write(repo):
        told = HfApi().whoami()
        return str(told["name"]), [str(organisation["name"]) for organisation in told.get("orgs") or ()]
