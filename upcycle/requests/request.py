"""What every request is: the options of one command, and the type of the result that carrying it out returns."""

from typing import Any, Generic, TypeVar

Result = TypeVar("Result", covariant=True)


class Request(Generic[Result]):
    """The options of one command, as a frozen dataclass; `upcycle.run` carries it out and returns a `Result`.

    The type of the result is named in quotes and imported for type checkers only, so that a request needs no torch.
    """


def result_name(request: type[Request[Any]]) -> str:
    """Return the name of the class of a request's results, such as `Merged`."""
    (base,) = (base for base in request.__orig_bases__ if getattr(base, "__origin__", None) is Request)  # type: ignore[attr-defined]
    (result,) = base.__args__
    return str(getattr(result, "__forward_arg__", None) or result.__name__)
