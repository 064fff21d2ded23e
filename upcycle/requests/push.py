"""The options of `upcycle push`: which directory goes to which repository on the Hub, and with what beside it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from upcycle.option import argument, option
from upcycle.requests.checks import check_kinds, require, require_beside
from upcycle.requests.request import Request

if TYPE_CHECKING:
    from upcycle.hub.push import Pushed

_MAIN = "main"


@dataclass(frozen=True, kw_only=True)
class Push(Request["Pushed"]):
    """Publish a model or an adapter on the Hub, with a model card.

    What is uploaded is checked first and compared afterwards. Run again, it continues where it stopped, and
    uploads nothing that is there already.
    """

    model: str = argument("Directory of the model or adapter.")
    repo: str = argument("Repository on the Hub: org/name, or name for one of your own; made if it is not there.")
    private: bool = option(False, "Make the repository private.", group="Repository")
    revision: str | None = option(
        None, "Branch to push to, made if it is not there; main if not given.", group="Repository", metavar="BRANCH"
    )
    create_pr: bool = option(False, "Open a pull request instead of changing main.", group="Repository")
    message: str | None = option(None, "Title of the commit or pull request.", group="Repository", metavar="TEXT")
    base: str | None = option(
        None, "Hub id of the dense model, where what was made knows only a directory.", group="Contents",
        metavar="MODEL",
    )  # fmt: skip
    include: tuple[str, ...] = option(
        (), "Also upload other files, such as '*.log' or 'logs/**' (repeat for more).", group="Contents",
        metavar="PATTERN",
    )  # fmt: skip
    card: bool = option(True, "Write a model card, or bring its marked block up to date.", group="Contents")
    dry_run: bool = option(False, "Check, and say what would be uploaded; change nothing.", group="Running")

    def __post_init__(self) -> None:
        """Raise RequestError for options that do not go together."""
        check_kinds(self)
        other = None if self.revision in (None, _MAIN) else self.revision
        require_beside(not (self.create_pr and other), "create_pr", other, "no --revision: it is opened against main")
        for name in ("message", "revision"):
            value = getattr(self, name)
            require(value is None or bool(value.strip()), name, value, "some text")

    @property
    def branch(self) -> str:
        """The branch that is pushed to."""
        return self.revision or _MAIN
