"""The recipe of an output: what led to it, as one recipe that `upcycle run` takes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from upcycle import requests
from upcycle.card.facts import Facts
from upcycle.card.markdown import cleaned, plain
from upcycle.card.values import mapping, origin
from upcycle.errors import RequestError
from upcycle.option import Option, options_of

_COMMANDS: dict[str, tuple[str, type[Any]]] = {
    "conversion": ("convert", requests.Convert),
    "adapter": ("attach", requests.Attach),
    "training": ("train", requests.Train),
    "merge": ("merge", requests.Merge),
}
"""What an entry of the lineage is about -> the command that does it, and its request."""

DENSE, ADAPTER = "DENSE", "ADAPTER"
"""What a card has in the place of a directory that only its reader can name."""

_CHAINED = {"model", "adapter"}
_ACCEPTED: dict[type, tuple[type, ...]] = {int: (int,), float: (float, int), bool: (bool,), str: (str,)}
_NUMERIC = re.compile(r"[-+.\d]")


class _Dumper(yaml.SafeDumper):
    """Writes YAML that readers of YAML 1.2 take for the same: what could be a number is in quotes."""


def recipe_yaml(facts: Facts, name: str) -> str | None:
    """Return the recipe `name` that makes the output again, or None where the lineage does not hold one."""
    steps = list(_steps(facts, name))
    if not steps or None in steps:
        return None
    document = {"name": name, "description": f"what {name} was made by", "steps": steps}
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def placeholder(facts: Facts) -> tuple[str, str] | None:
    """Return what stands in the recipe for a directory, and what that is; None where all of it can be had."""
    first = next(entry for entry in facts.lineage if entry.get("made") in _COMMANDS)
    (stands,) = _start(facts, first, _COMMANDS[first["made"]][0]).values()
    name = mapping(first.get("recipe")).get("adapter") if stands == ADAPTER else origin(first)[2]
    kind = "adapter" if stands == ADAPTER else "model"
    return (stands, f"the {kind} {plain(name or '')}".rstrip()) if stands in (DENSE, ADAPTER) else None


def _steps(facts: Facts, name: str) -> Iterator[dict[str, Any] | None]:
    """Yield the steps; None for one that no request can have."""
    made = [entry for entry in facts.lineage if entry.get("made") in _COMMANDS]
    before = None
    for entry in facts.lineage:
        if entry.get("made") == "verification" and before == "conversion":
            yield {"verify": {"record": True}}
        if entry.get("made") not in _COMMANDS:
            continue
        before = entry["made"]
        command, request = _COMMANDS[before]
        at = next(number for number, other in enumerate(made) if other is entry)
        out = f"build/{name}" if entry is made[-1] else f"build/{name}-{at + 1}"
        options = _options(request, mapping(entry.get("recipe")))
        start = _start(facts, entry, command) if at == 0 else {}
        yield _step(command, request, {**start, "out": out, **options})


def _step(command: str, request: type[Any], options: dict[str, Any]) -> dict[str, Any] | None:
    """Return a step, if it is one."""
    known = options_of(request)
    values = {name: tuple(value) if known[name].many else value for name, value in options.items()}
    chained = dict.fromkeys(_CHAINED & known.keys() - values.keys(), "before")
    try:
        request(**values, **chained)
    except (RequestError, TypeError):  # TypeError: an option that must be given is not in the record
        return None
    return {command: options}


def _options(request: type[Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says of a request, in the order of its fields, without what is nonsense.

    Defaults too: those of a later upcycle may be others.
    """
    chosen = {}
    for name, option in options_of(request).items():
        if name in _CHAINED or not option.recorded or not _fits(option, said.get(name)):
            continue
        value = said[name]
        if value != []:
            chosen[name] = [_one(item) for item in value] if option.many else _one(value)
    return chosen


def _fits(option: Option, value: Any) -> bool:
    values: Sequence[Any] = value if option.many and isinstance(value, list) else [value]
    if value is None or (option.many and not isinstance(value, list)):
        return False
    good = all(type(item) in _ACCEPTED[option.kind] for item in values)
    return good and (not option.choices or all(item in option.choices for item in values))


def _one(value: Any) -> Any:
    """A text becomes one line that cannot end a comment of the card or begin one."""
    return cleaned(value).replace("<", "_").replace(">", "_") if isinstance(value, str) else value


def _start(facts: Facts, entry: Mapping[str, Any], command: str) -> dict[str, str]:
    """Return what it all began with, as `upcycle` finds it."""
    if command == "merge":
        return {"adapter": ADAPTER}
    base, revision, _ = origin(entry)
    if base == facts.base or (base is None and not facts.past):
        base, revision = facts.base, revision or facts.revision
    return {"model": f"{base}@{revision}" if base and revision else base or DENSE}


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if _NUMERIC.match(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.SequenceNode:
    """A list of single values stands on one line."""
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=not isinstance(values[0], dict))


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
