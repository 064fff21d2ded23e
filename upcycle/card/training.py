"""What the trainings of an output did: their losses, and how evenly the experts were used at the end."""

from collections.abc import Iterator, Mapping
from typing import Any

from upcycle.card.facts import Facts
from upcycle.card.markdown import joined, picture, plain, table
from upcycle.card.proof import loss_text
from upcycle.card.values import mapping, real, whole

_MAX_DATA = 12
_MAX_LAYERS = 128
_RATES = {"": "lr", " for routers": "router_lr", " for experts": "expert_lr"}


def training(facts: Facts) -> str | None:
    """Return the trainings as markdown, with the pictures; None where there was none."""
    parts = [table(("", *_heads(facts)), _rows(facts))] if facts.entries("training") else []
    parts += _balance(facts)
    parts += [picture(path) for path in facts.pictures]
    return "\n\n".join(parts) or None


def _heads(facts: Facts) -> list[str]:
    """What the columns are: trainings of the dense model before anything was made of it, then those of this."""
    before, own = ["of the dense model"] * len(facts.past), len(facts.trainings)
    if own == 1:
        return [*before, "of this" if before else ""]
    return [*before, *(f"training {number}" for number in range(1, own + 1))]


def _rows(facts: Facts) -> Iterator[tuple[str, ...]]:
    """Yield a row for each figure that one of the trainings has."""
    for name, tell in (
        ("what was trained", lambda entry: plain(mapping(entry.get("recipe")).get("train", "all"), 40)),
        ("steps", lambda entry: _count(entry.get("steps"))),
        ("tokens", lambda entry: _count(entry.get("tokens"))),
        ("tokens of a sequence", lambda entry: _count(mapping(entry.get("recipe")).get("seq_len"))),
        ("data", _data),
        ("largest learning rate", _rate),
        ("loss", lambda entry: _course(entry.get("loss"))),
        ("loss on held-out text", lambda entry: _course(entry.get("eval_loss"))),
    ):
        cells = [tell(entry) for entry in facts.entries("training")]
        if any(cells):
            yield (name, *(cell or "not recorded" for cell in cells))


def _count(value: object) -> str | None:
    number = whole(value)
    return None if number is None else f"{number:,}"


def _rate(entry: Mapping[str, Any]) -> str | None:
    """The rate of everything, and those of the parts that have their own."""
    rates = {name: real(mapping(entry.get("recipe")).get(option)) for name, option in _RATES.items()}
    return joined([f"{rate:g}{name}" for name, rate in rates.items() if rate is not None]) or None


def _data(entry: Mapping[str, Any]) -> str | None:
    data = mapping(entry.get("recipe")).get("data")
    names = [plain(name, 100) for name in data if isinstance(name, str)] if isinstance(data, list) else []
    rest = len(names) - _MAX_DATA
    return joined([*names[:_MAX_DATA], *([f"{rest} more"] if rest > 0 else [])]) or None


def _course(value: object) -> str | None:
    """A loss from the first to the last that was measured."""
    first, last = (real(mapping(value).get(name)) for name in ("first", "last"))
    if last is None:
        return None
    return loss_text(last) if first is None else f"{loss_text(first)} → {loss_text(last)}"


def _balance(facts: Facts) -> Iterator[str]:
    """Yield how evenly the experts were used in the last step."""
    loads = facts.loads[:_MAX_LAYERS]
    if not loads:
        return
    worst, dead = max(loads, key=lambda load: load.max_over_mean), sum(load.dead for load in loads)
    layers = ", ".join(f"{load.max_over_mean:.2f}" for load in loads)
    yield (
        f"In the last step the busiest expert had {worst.max_over_mean:.2f} times an even share (layer {worst.layer}), "
        f"and {dead:,} of {sum(load.experts for load in loads):,} experts had less than a hundredth of one. The "
        f"busiest expert's share by layer, from layer {loads[0].layer} on: {layers}."
    )
