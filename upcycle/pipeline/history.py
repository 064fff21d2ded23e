"""Writes the history of an output, its lineage, as one recipe in YAML that makes it again: a part of its model card."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from upcycle.card import Facts
from upcycle.card.facts import Entry
from upcycle.card.markdown import cleaned
from upcycle.card.values import at, items
from upcycle.checkpoint.lineage import origin
from upcycle.errors import RequestError
from upcycle.option import Option, accepts_one
from upcycle.pipeline.grammar import command_options
from upcycle.requests.commands import COMMANDS

_COMMANDS = {"conversion": "convert", "adapter": "attach", "training": "train", "merge": "merge"}
"""What an entry of the lineage is about -> the command that does it."""

_CHAINED = {"model", "adapter"}


class _Dumper(yaml.SafeDumper):
    """Writes YAML that readers of YAML 1.2 take for the same: what could be a number is in quotes."""


def _text(to: yaml.SafeDumper, text: str) -> yaml.Node:
    return to.represent_scalar("tag:yaml.org,2002:str", text, '"' if re.match(r"[-+.\d]", text) else None)


def _list(to: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    """A list of single values stands on one line."""
    return to.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=not isinstance(values[0], dict))


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)


def recipe_of(facts: Facts, name: str) -> dict[str, Any] | None:
    """Return the `text` of the recipe `name` that makes the output again; None where the lineage does not hold one.

    Beside it what it `start`s with, DENSE or ADAPTER for a directory that only its reader knows, and its `name`.
    """
    made = [entry for entry in facts.lineage if entry.get("made") in _COMMANDS]
    steps = list(_steps(facts, made, name)) if made else [None]
    if None in steps:
        return None
    document = {"name": name, "description": f"what {name} was made by", "steps": steps}
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    start = _start(facts, made[0])
    return {
        "text": text,
        "start": start,
        "name": at(made[0], "recipe", "adapter") if start == "ADAPTER" else origin(made[0]).name,
    }


def _steps(facts: Facts, made: list[Entry], name: str) -> Iterator[dict[str, Any] | None]:
    """Yield the steps, of which each takes what the one before it made; None for one that no request can have."""
    number = 0
    for entry in facts.lineage:
        if entry.get("made") in _COMMANDS:
            number += 1
            start = {"adapter" if entry["made"] == "merge" else "model": _start(facts, entry)} if number == 1 else {}
            out = f"build/{name}" if number == len(made) else f"build/{name}-{number}"
            yield _step(entry, {**start, "out": out})
        elif number and made[number - 1]["made"] == "conversion":
            yield {"verify": {"record": True}}


def _step(entry: Entry, options: dict[str, Any]) -> dict[str, Any] | None:
    """Return a step with `options`, then those of its record, in the order of the request's fields.

    Nonsense is left out; what equals a default is not, for the defaults of a later upcycle may be others.
    """
    command = _COMMANDS[entry["made"]]
    known = command_options(command)
    for name, option in known.items():
        said = at(entry, "recipe", name)
        if name not in _CHAINED and option.recorded and said != [] and _fits(option, said):
            options[name] = [_one(item) for item in said] if option.many else _one(said)
    values = {name: tuple(value) if known[name].many else value for name, value in options.items()}
    try:
        COMMANDS[command].request(**dict.fromkeys(_CHAINED & known.keys(), "before") | values)
    except (RequestError, TypeError):  # TypeError: an option that must be given is not in the record
        return None
    return {command: options}


def _fits(option: Option, value: Any) -> bool:
    """Return whether a record's value is one that the option takes."""
    return (isinstance(value, list) or not option.many) and all(
        accepts_one(option, item) for item in (items(value) if option.many else [value])
    )


def _one(value: Any) -> Any:
    """Return a text as one line that cannot end a comment of the card or begin one; anything else as it is."""
    return cleaned(value).replace("<", "_").replace(">", "_") if isinstance(value, str) else value


def _start(facts: Facts, entry: Entry) -> str:
    """Return what the first step takes, such as `org/name@commit`."""
    if entry["made"] == "merge":
        return "ADAPTER"
    base, revision, _ = origin(entry)
    if base == facts.base or (base is None and not facts.past):
        base, revision = facts.base, revision or facts.revision
    return f"{base}@{revision}" if base and revision else base or "DENSE"
