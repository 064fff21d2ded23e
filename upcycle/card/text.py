"""The text of a card: what was done, in figures, what was shown of it and what not, and how it is made again."""

from collections.abc import Iterator, Mapping
from typing import Any

from upcycle.card.facts import Facts
from upcycle.card.markdown import fenced, plain, table
from upcycle.card.proof import proof
from upcycle.card.recipe import placeholder, recipe_yaml
from upcycle.card.story import story
from upcycle.card.training import training
from upcycle.card.use import limits_of_readers, use
from upcycle.card.values import mapping, whole
from upcycle.checkpoint.adapter import EXPERTS

_UPCYCLE = "upcycle (`pip install upcycle`) turns dense language models into mixtures of experts."
_SLUG = "-_."


def text(facts: Facts, repo_id: str) -> str:
    """Return the sections of the card as markdown, its first sentence first."""
    sections = {
        "In figures": _figures(facts),
        "Does it compute what the dense model computes?": proof(facts, repo_id),
        "Training": training(facts),
        "How to use it": use(facts, repo_id),
        "How to make it again": _recipe(facts, repo_id),
        "Limits": "\n".join(f"- {limit}" for limit in _limits(facts)),
    }
    return "\n\n".join([story(facts), *(f"## {name}\n\n{body}" for name, body in sections.items() if body)])


def _figures(facts: Facts) -> str:
    return table(("", ""), [(name, value) for name, value in _rows(facts) if value is not None])


def _rows(facts: Facts) -> Iterator[tuple[str, str | None]]:
    config, (total, active) = facts.config, facts.parameters or (None, None)
    adapter = facts.kind == "adapter"
    yield "parameters of the adapter" if adapter else "parameters", None if total is None else f"{total:,}"
    yield "of which a token uses", None if active is None or adapter else f"{active:,}"
    yield "experts", _experts(facts)
    if config.get("peft_type") == EXPERTS:
        yield "kind of experts", _said(config, "expert_type")
        yield "routing", _said(config, "routing")
    yield "rank", _counted(config, "rank", "r")
    yield "layers", _counted(config, "num_hidden_layers")
    yield "data type", _said(config, "dtype", "torch_dtype")
    yield "context", _counted(config, "max_position_embeddings", unit=" tokens")


def _experts(facts: Facts) -> str | None:
    counts, top_k = facts.experts, whole(facts.config.get("num_experts_per_tok", facts.config.get("top_k")))
    if not counts:
        return None
    used = f", {top_k} for each token" if top_k else ""
    if len(counts) > 1:
        return f"{min(counts)} to {max(counts)} in a layer{used}"
    return f"{counts[0]:,} in each layer{used}"


def _counted(config: Mapping[str, Any], *names: str, unit: str = "") -> str | None:
    value = next((found for name in names if (found := whole(config.get(name)))), None)
    return None if value is None else f"{value:,}{unit}"


def _said(config: Mapping[str, Any], *names: str) -> str | None:
    value = next((config[name] for name in names if isinstance(config.get(name), str)), None)
    return None if value is None else plain(value, 40)


def _recipe(facts: Facts, repo_id: str) -> str | None:
    """The recipe in full, and the versions that it was carried out by."""
    if not facts.lineage:
        return None
    name = "".join(character for character in repo_id.rpartition("/")[2] if character.isalnum() or character in _SLUG)
    written = recipe_yaml(facts, name)
    if written is None:
        return "The records hold no recipe that could be carried out again."
    unknown, file = placeholder(facts), f"{name}.yaml"
    again = f"`upcycle run {file}` does it again, with this in `{file}`:"
    if unknown:
        stands, what = unknown
        again = f"With the directory of {what} in the place of `{stands}`, this is what `upcycle run {file}` takes:"
    parts = [again, fenced("yaml", written)]
    if unknown or facts.entries("training"):
        parts.append("Files and directories are called by their names, without the place where they were.")
    versions = _versions(facts)
    made_by = f"Made by {versions}. " if versions else ""
    return "\n\n".join([*parts, made_by + _UPCYCLE])


def _versions(facts: Facts) -> str:
    found: dict[str, list[str]] = {}
    for entry in facts.lineage:
        for name, version in sorted(mapping(entry.get("versions")).items()):
            if isinstance(version, str) and plain(version, 40) not in found.setdefault(plain(name, 40), []):
                found[plain(name, 40)].append(plain(version, 40))
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in list(found.items())[:12])


def _limits(facts: Facts) -> Iterator[str]:
    if not facts.lineage:
        yield "How this was made is not recorded, so that nothing is claimed about it here."
    if facts.has_copies:
        yield (
            "Its experts are the same until training makes them differ, so it is not better than the dense model, and "
            "needs more memory. It is a start for training."
        )
    elif facts.untrained_conversion:
        yield (
            "It is not trained: its experts are the dense one with noise, so it is not better than the dense model, "
            "and needs more memory. It is a start for training."
        )
    if facts.last("adapter") and facts.kind == "adapter" and not facts.trainings:
        yield "It is not trained yet."
    if facts.trainings and any(mapping(entry.get("eval_loss")) for entry in facts.trainings):
        yield "The held-out loss is all that was measured here; no benchmark of tasks was run."
    else:
        yield "Nothing was evaluated here: neither a loss on held-out text nor a benchmark of tasks."
    for limit in limits_of_readers(facts):
        yield f"{limit}."
    if facts.lineage:
        yield "What the model that it was made from gets wrong, this one can be expected to get wrong as well."
