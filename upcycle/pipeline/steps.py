"""Turns the steps of a recipe file into requests, each option that a step leaves out taken from the steps before it.

    name: smollm2-4x135m
    description: one line
    steps:
      - convert: {model: HuggingFaceTB/SmolLM2-135M, out: build/smollm2-4x135m, experts: 4, top_k: 2}
      - verify: {}
      - generate: {prompt: "Gravity is", max_new_tokens: 32}

A step is one command and its options, the fields of its request in `upcycle.requests`. A step that leaves out `model`,
`dense`, `moe`, `adapter` or `metrics` gets it from the last step before it that gives one, as the rows of
`upcycle.requests.commands` say. Paths are relative to where `upcycle` is run, as on the command line.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import upcycle
from upcycle.errors import RequestError
from upcycle.option import Option
from upcycle.pipeline.document import Value, parse, read_document, unknown, wrong_type
from upcycle.pipeline.grammar import CHAINED, command_options, is_required, read_option
from upcycle.requests.commands import COMMANDS, command_of

_HERE = Path(upcycle.__file__).parent
SHELVES = (_HERE / "data/recipes", _HERE.parent / "recipes")
"""Where the packaged recipes lie: in an installed package, in a working copy."""

_OVERRIDE = re.compile(r"(?P<command>[^.=]+)(?:\.(?P<index>[0-9]{1,4}))?\.(?P<name>[^.=]+)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe whose steps have become requests."""

    name: str
    description: str
    steps: tuple[Any, ...]  # requests of `upcycle.requests`


@dataclass(frozen=True, slots=True)
class _Said:
    """A step as the file says it."""

    command: str
    where: str
    options: dict[str, Value]


def packaged() -> dict[str, Path]:
    """Return the recipes that come with upcycle, by name."""
    shelf = next((directory for directory in SHELVES if directory.is_dir()), None)
    return {path.stem: path for path in sorted(shelf.glob("*.yaml"))} if shelf else {}


def find_recipe(name: str) -> Path:
    """Return the path of a recipe given as a path or by a packaged one's name; raise RequestError for another name."""
    path, known = Path(name).expanduser(), packaged()
    if not path.is_file() and name in known:
        return known[name]
    if path.is_file() or path.suffix in (".yaml", ".yml") or "/" in name:
        return path
    raise unknown("recipe", name, ["a file", *known], "upcycle run")


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in the file `path`, with `overrides` (`convert.experts=8`) put in.

    Raises RequestError, with the line or the override, for whatever cannot be read or makes no sense.
    """
    top = read_document(path)
    entries = top.entries("the recipe")
    known = ["name", "description", "steps"]
    _check_names("key", entries, known)
    for key in known:
        if key not in entries:
            raise RequestError(f"lacks {key}", where=top.where, expected="name, description and steps")
    said = [_said(item) for item in _steps(entries["steps"])]
    for override in overrides:
        _override(said, override)
    return Recipe(_text(entries, "name"), _text(entries, "description"), tuple(_resolved(said)))


def command_line(request: Any) -> str:
    """Return the command line that does what `request` says."""
    command = command_of(request).name
    options = command_options(command).values()
    given = [getattr(request, option.name) for option in options if option.positional]
    flags = [word for option in options if not option.positional for word in _flags(option, request)]
    dashed = any(word.startswith("-") for word in given)
    words = [*flags, "--", *given] if dashed else [*given, *flags]
    return shlex.join(["upcycle", command, *words])


def _steps(value: Value) -> tuple[Value, ...]:
    if not isinstance(value.data, tuple) or not value.data:
        raise wrong_type("steps", value, "a list of steps such as `- verify: {}`")
    return value.data


def _text(entries: Mapping[str, Value], key: str) -> str:
    value = entries[key]
    if not isinstance(value.data, str) or not value.data.strip() or not value.data.isprintable():
        raise wrong_type(key, value, "one line of text")
    return value.data


def _said(value: Value) -> _Said:
    """Return a step that has one known command and known options."""
    entries = value.entries("a step", "such as `- verify: {}`")
    if len(entries) != 1:
        raise RequestError("a step is one command", where=value.where, found=", ".join(entries) or "none")
    ((command, body),) = entries.items()
    _check_names("command", entries, list(COMMANDS))
    options = body.entries(command, f"such as `{command}: {{}}`")
    _check_names(f"option of {command}", options, list(command_options(command)))
    return _Said(command, body.where, dict(options))


def _check_names(what: str, entries: Mapping[str, Value], known: list[str]) -> None:
    for name, value in entries.items():
        if name not in known:
            raise unknown(what, name, known, value.where)


def _override(said: list[_Said], override: str) -> None:
    """Put `STEP.FIELD=VALUE` or `STEP.INDEX.FIELD=VALUE` into the step that it names."""
    where = f"--set {override}"
    matched = _OVERRIDE.fullmatch(override)
    if matched is None:
        raise RequestError("cannot be read", where=where, expected="STEP.FIELD=VALUE, such as convert.experts=8")
    step = _chosen(said, matched["command"], matched["index"], where)
    known = list(command_options(step.command))
    if matched["name"] not in known:
        raise unknown(f"option of {step.command}", matched["name"], known, where)
    step.options[matched["name"]] = parse(matched["value"].strip() or "~", lambda _: where)


def _chosen(said: list[_Said], command: str, index: str | None, where: str) -> _Said:
    steps = [step for step in said if step.command == command]
    if not steps:
        raise unknown("step", command, list(dict.fromkeys(step.command for step in said)), where)
    if index is None and len(steps) > 1:
        names = f"{command}.0 to {command}.{len(steps) - 1}"
        raise RequestError("names several steps", where=where, found=f"{len(steps)} of {command}", expected=names)
    if int(index or 0) >= len(steps):
        raise RequestError("names no step", where=where, found=f"{len(steps)} of {command}, counted from 0")
    return steps[int(index or 0)]


def _resolved(said: list[_Said]) -> Iterator[Any]:
    """Yield the request of each step, with what it leaves out taken from the steps before."""
    chain: dict[str, str] = {}
    for number, step in enumerate(said):
        request = _request(step, chain, said[:number])
        chain = _after(chain, request)
        yield request


def _after(chain: Mapping[str, str], request: Any) -> dict[str, str]:
    """Return what a step after `request` may leave out, and what it takes for it."""
    gives = command_of(request).gives
    given = {option: getattr(request, source) for option, source in gives.items()}
    before = {} if "dense" in gives else chain
    return {**before, **{option: value for option, value in given.items() if value}}


def _request(step: _Said, chain: Mapping[str, str], before: Sequence[_Said]) -> Any:
    values: dict[str, Any] = {}
    for option in command_options(step.command).values():
        if option.name in step.options:
            values[option.name] = read_option(option, step.options[option.name], step.command)
        elif option.name in CHAINED and option.name in chain:
            values[option.name] = chain[option.name]
        elif is_required(option) or option.name in CHAINED:
            raise _lacking(step, option, before)
    try:
        return COMMANDS[step.command].request(**values)
    except RequestError as error:  # a value that the request refuses
        blamed = step.options.get(error.option or "")
        where = blamed.where if blamed else step.where
        what = f"{step.command}.{error.what}"
        raise RequestError(what, where=where, found=error.found, expected=error.expected) from None


def _lacking(step: _Said, option: Option, before: Sequence[_Said]) -> RequestError:
    hint = "no step comes before it to take it from" if option.name in CHAINED else None
    if hint and any("stream_to" in one.options for one in before):
        hint = "what comes before it writes to the Hub, with stream_to, and leaves no directory"
    return RequestError(f"{step.command} lacks {option.name}", where=step.where, expected=option.words, hint=hint)


def _flags(option: Option, request: Any) -> list[str]:
    """The words of one option: none for a default, one for a switch, two for each value."""
    value = getattr(request, option.name)
    if value == option.default:
        return []
    dashed = option.name.replace("_", "-")
    if option.joined:
        return [f"--{dashed}", ",".join(map(str, value))]
    if option.kind is bool:
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    return [word for one in (value if option.many else [value]) for word in (f"--{dashed}", str(one))]
