"""The JSON Schema of recipes, for editors; made from the dataclasses of `upcycle.requests`."""

from dataclasses import MISSING
from typing import Any

from upcycle.option import Option
from upcycle.pipeline.grammar import CHAINED, command_options, is_required
from upcycle.requests.commands import COMMANDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def recipe_schema() -> dict[str, Any]:
    """Return the schema as JSON data. It checks one file by itself; what only the chain of steps shows, it cannot."""
    line = {"type": "string", "pattern": r"^[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*$"}
    commands = {command: {"$ref": f"#/$defs/{command}"} for command in COMMANDS}
    step = {
        "description": "One command and its options.",
        "type": "object",
        "properties": commands,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {
        "$schema": DIALECT,
        "title": "A recipe of upcycle",
        "description": "Commands that `upcycle run` carries out one after the other.",
        "type": "object",
        "properties": {
            "name": {"description": "What the recipe is called.", **line},
            "description": {"description": "What it makes, in a line.", **line},
            "steps": {"description": "What is done, in order.", "type": "array", "minItems": 1, "items": step},
        },
        "required": ["name", "description", "steps"],
        "additionalProperties": False,
        "$defs": {command: _command_schema(command) for command in COMMANDS},
    }


def _command_schema(command: str) -> dict[str, Any]:
    options = command_options(command).values()
    schema = {
        "description": COMMANDS[command].request.__doc__,
        "type": "object",
        "properties": {option.name: _option_schema(option) for option in options},
        "additionalProperties": False,
    }
    required = [option.name for option in options if is_required(option)]
    return {**schema, "required": required} if required else schema


def _taken(option: str) -> str:
    """Return the sentence that says what an option is where a step leaves it out."""
    givers = [command for command in COMMANDS.values() if option in command.gives]
    (source,) = {command.gives[option] for command in givers}
    *most, last = (command.name for command in givers)
    commands = f"{', '.join(most)} or {last}" if most else last
    return f"Left out: the {source} of the last {commands} step."


def _option_schema(option: Option) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": option.help}
    if option.name in CHAINED:
        schema["description"] += f" {_taken(option.name)}"
    kind: Any = _JSON_TYPES[option.kind]
    one: dict[str, Any] = {"enum": list(option.choices)} if option.choices else {"type": kind}
    if option.many:
        several = {"type": "array", "items": one}
        one = {"anyOf": [one, several]} if option.joined else several
    schema |= {"anyOf": [one, {"type": "null"}]} if option.nullable else one
    if option.default is not MISSING:
        schema["default"] = list(option.default) if option.many else option.default
    return schema
