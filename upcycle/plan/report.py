"""What was proven about an output: a line for everything that was checked, and a verdict."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was checked."""

    name: str
    verdict: Verdict
    text: str


@dataclass
class Report:
    """The outcome of a verification."""

    lines: list[Line] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)  # the numbers behind the lines, as JSON data

    @property
    def passed(self) -> bool:
        """Whether no line failed."""
        return all(line.verdict != "FAIL" for line in self.lines)

    def add(self, name: str, good: bool, text: str, *, otherwise: Verdict = "FAIL") -> None:
        """Add a line with the verdict ok, or `otherwise`."""
        self.lines.append(Line(name, "ok" if good else otherwise, text))

    def as_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        return {"passed": self.passed, "lines": [asdict(line) for line in self.lines], **self.figures}
