"""Publishes a model or adapter: uploads what the Hub lacks, commits it at once, and compares the Hub with what is here.

Every attempt begins with what the Hub holds, so a push can fail anywhere and be run again: files that have arrived are
not sent twice, and nobody sees any of them before the commit.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upcycle.checkpoint.place import CARD_FILE, RECEIPT_FILE
from upcycle.checkpoint.strict_json import MAX_JSON_BYTES
from upcycle.errors import InputError, UpcycleError
from upcycle.hub.changes import Changes, Sender, check, compare
from upcycle.hub.contents import MODEL_FILES, Contents, Item
from upcycle.hub.repository import Repository
from upcycle.hub.secrets import refuse_secret_text, refuse_secrets
from upcycle.hub.target import MAIN, Target, attempts
from upcycle.requests import Push

KEPT = "what has arrived on the Hub is kept there, and the same command goes on"

WriteCard = Callable[[str, str | None, str | None], tuple[bytes, list[str]]]
"""(the repository's name, the card that is there, the Hub's card if the directory's takes its place) -> the card to
upload, and what of it its owner may not expect."""


@dataclass(frozen=True)
class Pushed:
    """The result of a push: the repository, its commit, and which files were uploaded, kept or removed."""

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
    before: str | None  # the commit that was there before; None where there was no repository
    private: bool
    notes: tuple[str, ...] = ()  # what its owner may not expect
    dry_run: bool = False

    def as_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Opened:
    """A repository on the Hub that the user's token may write to, or create."""

    target: Target
    main: Repository | None  # None: it is not there yet
    private: bool


def push(opened: Opened, contents: Contents, request: Push, write_card: WriteCard | None) -> Pushed:
    """Make the repository hold `contents`, with a card where one is to be written, and prove that it does.

    Raises InputError when the Hub refuses what is asked, UnreachableError when it fails for longer than it is waited
    for, UpcycleError when what it holds in the end is not what was sent.
    """
    refuse_secrets(contents)
    refuse_secret_text("--message", request.message)
    refuse_secret_text("--revision", request.revision)
    target, main = opened.target, opened.main
    if request.dry_run:
        branch = request.branch
        state = target.state(branch) if main and branch != MAIN and target.has(branch) else main
        wanted, notes = _with_card(target, contents, state, write_card)
        changes = compare(wanted, state or Repository(target.repo, target.repo, branch, "", {}))
        return _pushed(opened, wanted, changes, notes, branch, None)
    make(opened)
    title = request.message or f"Upload {contents.kind} by upcycle"

    def revision() -> str:
        if request.create_pr:  # an earlier run may have opened it
            return target.own_pull_request(title) or MAIN
        target.branch(request.branch)
        return request.branch

    return publish(opened, contents, write_card, revision, title, create_pr=request.create_pr)


def publish(
    opened: Opened,
    contents: Contents,
    write_card: WriteCard | None,
    revision: Callable[[], str],
    title: str,
    *,
    create_pr: bool = False,
    mark: str = "",
) -> Pushed:
    """Make the branch that `revision` gives hold `contents`, by one commit or a pull request, and check that it does.

    Every attempt begins anew with what is there. `mark` is what `already` finds the commit by. Raises as `push` does.
    """
    target = opened.target
    sender = Sender(target, title, mark)

    def once() -> Pushed:
        branch = revision()
        state = target.state(branch)
        wanted, notes = _with_card(target, contents, state, write_card)
        refuse_secrets(wanted)  # again, with the card
        changes = compare(wanted, state)
        commit, ref, known = state.commit, branch, changes.known(state)
        if changes:
            commit, ref = sender.send(changes, state, create_pr=create_pr and branch == MAIN)
            state = target.state(ref)
        check(wanted, state, {**known, **sender.hashes})
        return _pushed(opened, wanted, changes, notes, ref, commit)

    try:
        return attempts(once)
    except BaseException as error:  # Ctrl-C and SIGTERM: whoever reports them can say what is left
        if not isinstance(error, UpcycleError):
            error.add_note(KEPT)
        raise


def open_target(repo: str, *, private: bool) -> Opened:
    """Return the repository to write, which may have to be made; change nothing.

    Raises InputError when there is no token, when it is public and shall be private, or cannot be made.
    """
    target = attempts(lambda: Target.of(repo))
    main = attempts(target.find)
    owner = target.repo.partition("/")[0]
    if main is None and owner not in target.owners:
        raise InputError(
            f"{target.repo}: is not there, and this token cannot make it", found=f"the owner {owner}",
            expected=" or ".join(sorted(target.owners)),
        )  # fmt: skip
    if main and private and not main.private:
        raise InputError(
            f"{target.repo}: is there and public, which --private does not change", hint="its settings on the Hub do"
        )
    return Opened(target, main, main.private if main else private)


def already(opened: Opened, mark: str, weights: Sequence[str]) -> Pushed | None:
    """Return what main holds if a commit with `mark` put it there; None if not, or where it has changed since.

    What does not count is what may change by itself: the card, a verification that came later.
    """
    main = opened.main
    commit = main and attempts(lambda: opened.target.marked(mark))
    if not main or not commit:
        return None
    then = attempts(lambda: opened.target.state(commit))
    if any(main.digests.get(name) != then.digests.get(name) for name in (*weights, *MODEL_FILES, RECEIPT_FILE)):
        return None
    names = tuple(sorted(then.sizes.keys() & main.sizes.keys() - {".gitattributes"}))
    return Pushed(
        opened.target.repo, opened.target.url(MAIN), "model", MAIN, main.commit, (), 0, names, (), (), main.commit,
        main.private,
    )  # fmt: skip


def make(opened: Opened) -> None:
    """Make the repository, unless it is there."""
    if opened.main is None:
        attempts(lambda: opened.target.create(private=opened.private))


def _with_card(
    target: Target, contents: Contents, state: Repository | None, write_card: WriteCard | None
) -> tuple[Contents, list[str]]:
    """Return `contents` with the card, and notes about it; the directory's own README.md comes before the Hub's."""
    if write_card is None:
        return contents, []
    own = next((item for item in contents.items if item.name == CARD_FILE), None)
    theirs = _card_of(state)
    try:
        found = own.read() if own else theirs
        before = None if found is None else found.decode()
    except UnicodeDecodeError:
        raise InputError("is no text in UTF-8", where=contents.directory / CARD_FILE) from None
    replaced = theirs.decode(errors="replace") if own and theirs is not None else None
    data, notes = write_card(target.repo, before, replaced)
    return contents.with_items(Item(CARD_FILE, data)), notes


def _card_of(state: Repository | None) -> bytes | None:
    """Return the card that is on the Hub."""
    if state is None or CARD_FILE not in state.sizes:
        return None
    return state.read(CARD_FILE, 0, min(state.sizes[CARD_FILE], MAX_JSON_BYTES))


def _pushed(
    opened: Opened, contents: Contents, changes: Changes, notes: Sequence[str], ref: str, commit: str | None
) -> Pushed:
    stays = f"of another model, and still there: {', '.join(changes.beside)}"
    return Pushed(
        opened.target.repo, opened.target.url(ref), contents.kind, ref, commit,
        tuple(item.name for item in changes.new), sum(item.size for item in changes.new), changes.same, changes.stale,
        contents.left, opened.main.commit if opened.main else None, opened.private,
        (*notes, *([stays] if changes.beside else [])), dry_run=commit is None,
    )  # fmt: skip
