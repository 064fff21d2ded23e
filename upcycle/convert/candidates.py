"""What a dense model can become: each target of its pairs, planned by itself, with what it costs or what stops it."""

from dataclasses import dataclass, replace
from typing import Any

from upcycle.build.conversion import plan_conversion
from upcycle.checkpoint.reader import Checkpoint
from upcycle.errors import InputError
from upcycle.families.find import find_pairs
from upcycle.families.targets.target import Target
from upcycle.families.wrappers import language_model
from upcycle.plan.account import parameters
from upcycle.plan.plan import Plan
from upcycle.requests import Conversion


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target, and the plan of becoming it or the reason why the model cannot."""

    target: Target
    plan: Plan | None = None
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        named: dict[str, Any] = {"target": self.target.model_type, "title": self.target.title, "problem": self.problem}
        if self.plan is None:
            return named
        total, active = parameters(self.plan)
        return {
            **named,
            "exact": self.plan.exact,
            "inexact": self.plan.inexact,
            "parameters": {"total": total, "active": active},
            "disk_bytes": self.plan.bytes_written,
            "layers": self.target.layer_choice.says if self.target.layer_choice else "all",
            "readers": list(self.target.readers.names),
            "notes": list(self.plan.notes),
            "reader_limits": list(self.plan.reader_limits),
        }


def candidates(checkpoint: Checkpoint, request: Conversion) -> tuple[Candidate, ...]:
    """Return every target of the dense model in the order of preference: without `target`, the first with a plan is it.

    Raises UnsupportedError for a model that has no pair.
    """
    pairs = find_pairs(language_model(checkpoint).config, request.target)
    return tuple(_candidate(checkpoint, pair.target, request) for pair in pairs)


def _candidate(checkpoint: Checkpoint, target: Target, request: Conversion) -> Candidate:
    try:
        return Candidate(target, plan_conversion(checkpoint, replace(request, target=target.model_type)))
    except InputError as error:
        return Candidate(target, problem=str(error))
