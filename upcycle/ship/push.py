"""Publishing: what the Hub lacks is uploaded, put there by one commit, and compared with what is here.

A piece of work begins with what the Hub holds, so it can fail anywhere and be done again: content that has arrived is
not sent twice, and until the commit nobody sees any of it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from upcycle.checkpoint.strict_json import MAX_JSON_BYTES
from upcycle.errors import InputError, UpcycleError
from upcycle.recipe import Push
from upcycle.ship.changes import Changes, Sender, check, compare
from upcycle.ship.contents import Contents, Item
from upcycle.ship.hub import CARD_FILE
from upcycle.ship.repository import Repository
from upcycle.ship.target import MAIN, Target, attempts

WEIGHT_SUFFIXES = (".safetensors", ".gguf")

KEPT = "what has arrived on the Hub is kept there, and the same command goes on"

WriteCard = Callable[[str, str | None], bytes]
"""Given the repository's name and the card that is there: the card to upload."""


@dataclass(frozen=True)
class Pushed:
    """What a push came to."""

    repo: str
    url: str
    kind: str  # model or adapter
    revision: str  # the branch, or the pull request's ref
    commit: str | None  # that holds it; None of a dry run
    uploaded: tuple[str, ...]  # files that were new or others
    uploaded_bytes: int  # their sizes; what the Hub had of them already was not sent
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]  # files of the model that was there before
    left: tuple[str, ...]  # what is in the directory and was not published
    dry_run: bool = False

    def as_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        return asdict(self)


def push(contents: Contents, request: Push, write_card: WriteCard | None) -> Pushed:
    """Make the repository hold `contents`, with a card where one is to be written, and prove that it does.

    Raises InputError when the Hub refuses what is asked, UnreachableError when it fails for longer than it is waited
    for, UpcycleError when what it holds in the end is not what was sent.
    """
    refuse_secrets(contents)
    target, main = open_target(request.repo, private=request.private)
    if request.dry_run:
        branch = request.branch
        state = target.state(branch) if main and branch != MAIN and target.has(branch) else main
        wanted = _with_card(target, contents, state, write_card)
        nothing = Repository(target.repo, target.repo, branch, "", {})
        return _pushed(target, wanted, compare(wanted, state or nothing), branch, None)
    if main is None:
        attempts(lambda: target.create(private=request.private))
    title = request.message or f"Upload {contents.kind} by upcycle"

    def revision() -> str:
        if request.create_pr:  # an earlier run may have opened it
            return target.own_pull_request(title) or MAIN
        target.branch(request.branch)
        return request.branch

    return publish(target, contents, write_card, revision, title, create_pr=request.create_pr)


def publish(
    target: Target,
    contents: Contents,
    write_card: WriteCard | None,
    revision: Callable[[], str],
    title: str,
    *,
    create_pr: bool = False,
) -> Pushed:
    """Make the branch that `revision` gives hold `contents`, by one commit or a pull request, and check that it does.

    Every attempt begins anew with what is there. Raises as `push` does.
    """
    sender = Sender(target, title)

    def once() -> Pushed:
        branch = revision()
        state = target.state(branch)
        wanted = _with_card(target, contents, state, write_card)
        changes = compare(wanted, state)
        commit, ref, known = state.commit, branch, changes.known(state)
        if changes:
            commit, ref = sender.send(changes, state, create_pr=create_pr and branch == MAIN)
            state = target.state(ref)
        check(wanted, state, {**known, **sender.hashes})
        return _pushed(target, wanted, changes, ref, commit)

    try:
        return attempts(once)
    except BaseException as error:  # Ctrl-C and SIGTERM: whoever reports them can say what is left
        if not isinstance(error, UpcycleError):
            error.add_note(KEPT)
        raise


def open_target(repo: str, *, private: bool) -> tuple[Target, Repository | None]:
    """Return the repository to write, and main's state where there is one; change nothing.

    Raises InputError when there is no token, or when it is public and shall be private.
    """
    target = Target.of(repo)
    main = attempts(target.find)
    if main and private and not main.private:
        raise InputError(
            f"{target.repo}: is there and public, which --private does not change", hint="its settings on the Hub do"
        )
    return target, main


def refuse_secrets(contents: Contents) -> None:
    """Raise InputError when the token is in a file, a config or a card say, and would be published."""
    from huggingface_hub import get_token

    token = get_token()
    texts = (item for item in contents.items if not item.name.endswith(WEIGHT_SUFFIXES) and item.size <= MAX_JSON_BYTES)
    for item in texts if token else ():
        if (token or "").encode() in item.read():
            raise InputError("holds your access token, and would be published", where=contents.directory / item.name)


def _with_card(target: Target, contents: Contents, state: Repository | None, write_card: WriteCard | None) -> Contents:
    """Add the card; the directory's own comes before the one that is on the Hub."""
    if write_card is None:
        return contents
    own = next((item for item in contents.items if item.name == CARD_FILE), None)
    before = None
    if own is not None:
        before = own.read()
    elif state is not None and CARD_FILE in state.sizes:
        before = state.read(CARD_FILE, 0, min(state.sizes[CARD_FILE], MAX_JSON_BYTES))
    try:
        text = None if before is None else before.decode()
    except UnicodeDecodeError:
        raise InputError("is no text in UTF-8", where=contents.directory / CARD_FILE) from None
    return contents.with_items(Item(CARD_FILE, write_card(target.repo, text)))


def _pushed(target: Target, contents: Contents, changes: Changes, ref: str, commit: str | None) -> Pushed:
    return Pushed(
        target.repo, target.url(ref), contents.kind, ref, commit,
        tuple(item.name for item in changes.new), sum(item.size for item in changes.new), changes.same, changes.stale,
        contents.left, dry_run=commit is None,
    )  # fmt: skip
