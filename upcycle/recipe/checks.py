"""What every request checks of its own fields."""

from typing import Any

from upcycle.errors import RecipeError
from upcycle.option import wrong_kind


def check_kinds(request: Any) -> None:
    """Raise RecipeError for a value of another kind than its field, which only Python programs can give."""
    wrong = wrong_kind(request)
    if wrong:
        found = repr(getattr(request, wrong.name))[:60]
        raise RecipeError(f"{wrong.name} is of the wrong kind", found=found, expected=wrong.words, option=wrong.name)


def require(good: bool, name: str, found: object, expected: str) -> None:
    """Raise RecipeError, naming the option `name`, unless its value is `good`."""
    if not good:
        flag = f"--{name.replace('_', '-')}"
        raise RecipeError(
            f"{name} is out of range", found=found, expected=expected, hint=f"set it with {flag}", option=name
        )
