"""The seam between families and methods: a method sees the sources of a dense FFN and gives those of experts.

    method(ffn: Ffn, slot: Slot, asked) -> Experts

A method never sees a name of a tensor, and nothing else knows how experts are made. `asked` is what a user asked for: a
`requests.Conversion`, or the `AdapterExperts` whose experts are merged.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from upcycle.plan.sources import Blank, Part


@dataclass(frozen=True, slots=True)
class Ffn:
    """A feed-forward network as sources: gate and up `(width, D)`, down `(D, width)`."""

    gate: Part | None  # None: an FFN without a gate, `W_down act(W_up x)`
    up: Part
    down: Part
    width: int  # neurons

    def matrices(self) -> Iterator[tuple[str, Part]]:
        """Yield each matrix with its name: gate, up, down."""
        if self.gate is not None:
            yield "gate", self.gate
        yield from (("up", self.up), ("down", self.down))

    def changed(self, change: Callable[[str, Part], Part], width: int | None = None) -> "Ffn":
        """Return this FFN with every matrix replaced by what `change` makes of it."""
        made = {name: change(name, part) for name, part in self.matrices()}
        return Ffn(made.get("gate"), made["up"], made["down"], self.width if width is None else width)

    def without_output(self, hidden: int) -> "Ffn":
        """Return this FFN with a down projection of zeros: it adds nothing, and training can move it."""
        return self.changed(lambda matrix, part: Blank(self.width * hidden) if matrix == "down" else part)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the experts of a method go: one layer of the target."""

    layer: int
    hidden: int  # D, the width of what an FFN reads and gives
    shared: bool  # the target has a shared expert, which every token uses
    key: Callable[[int, str], str]  # (expert, matrix) -> key of the random stream for its values


@dataclass(frozen=True, slots=True)
class Experts:
    """What a method makes of the FFN of one layer."""

    ffns: tuple[Ffn, ...]  # the experts, all of one width
    shared: Ffn | None = None  # the expert that every token uses
    inexact: str | None = None  # why the model then computes something else than the dense one, or than its adapter


Method = Callable[[Ffn, Slot, Any], Experts]
