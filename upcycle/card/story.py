"""What was done, in a sentence for each thing that was done."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from upcycle.card.facts import Facts
from upcycle.card.markdown import joined, plain
from upcycle.card.use import cited
from upcycle.card.values import mapping, origin, real, whole
from upcycle.checkpoint.adapter import LORA

_NAMES = {
    "mixtral": "Mixtral", "granitemoeshared": "GraniteMoeShared", "qwen2_moe": "Qwen2-MoE", "llama": "Llama",
    "mistral": "Mistral",
}  # fmt: skip

_EXPERTS = {
    "lora": "low-rank updates of the feed-forward network ([2404.15159](https://arxiv.org/abs/2404.15159))",
    "bottleneck": "narrow feed-forward networks beside the frozen one",
    "pesc": "narrow networks on the output of the frozen feed-forward network "
    "([2401.02731](https://arxiv.org/abs/2401.02731))",
    "ia3": "vectors that scale the activation of the feed-forward network "
    "([2309.05444](https://arxiv.org/abs/2309.05444))",
}  # fmt: skip

_TRAINED = {
    "all": "all of it was trained",
    "experts": "its experts alone were trained",
    "router": "its routers alone were trained",
    "lora": "it was trained by low-rank updates (LoRA)",
}


def story(facts: Facts) -> str:
    """Return what this is and how it came to be, a paragraph of markdown."""
    return " ".join(_sentences(facts))


def _sentences(facts: Facts) -> Iterator[str]:
    told: dict[str, Callable[[Facts, Mapping[str, Any]], str]] = {
        "conversion": _conversion, "adapter": _adapter, "training": _training, "merge": _merge,
    }  # fmt: skip
    entries = [entry for entry in facts.own if entry.get("made") in told]
    if not entries:
        yield f"{_subject(facts)}{_origin(facts)}."
    elif entries[0].get("made") == "training":
        yield f"{_subject(facts)}{_origin(facts)}: trained further."
    elif _is_lora(facts) and facts.last("conversion"):
        yield f"{_subject(facts)}, for the following mixture of experts."
    for at, entry in enumerate(entries):
        yield told[entry["made"]](facts, entry)
        if at == 0:
            yield from (f"Before that, the dense model was trained{_length(training)}." for training in facts.past)


def _subject(facts: Facts) -> str:
    """What this is, by its config."""
    if facts.kind == "adapter":
        rank = whole(facts.config.get("r"))
        if _is_lora(facts):
            return f"A LoRA of rank {rank}" if rank else "A LoRA"
        return "A PEFT adapter of small experts and routers" if facts.experts else "A PEFT adapter"
    return f"{_model(facts)}{_of_experts(facts)}"


def _is_lora(facts: Facts) -> bool:
    return facts.kind == "adapter" and facts.config.get("peft_type") == LORA


def _model(facts: Facts) -> str:
    kind = facts.config.get("model_type")
    name = _NAMES.get(kind) if isinstance(kind, str) else None
    return f"A {name or f'model of the type {plain(kind, 40)}'}"


def _of_experts(facts: Facts) -> str:
    counts, top_k = facts.experts, whole(facts.config.get("num_experts_per_tok"))
    if not counts:
        return ""
    return f" of {counts[0]:,} experts in each layer" + (f", {top_k:,} for each token" if top_k else "")


def _origin(facts: Facts) -> str:
    if not facts.lineage and facts.kind == "model":
        return "; how it was made is not recorded"
    return f" {'for' if facts.kind == 'adapter' else 'made from'} {cited(facts)}"


def _conversion(facts: Facts, entry: Mapping[str, Any]) -> str:
    recipe = mapping(entry.get("recipe"))
    experts, top_k, noise = whole(recipe.get("experts")), whole(recipe.get("top_k")), real(recipe.get("noise"))
    if facts.kind == "model":
        what = f"{_model(facts)}{_of_experts(facts)},"
    else:
        what = f"A model of {experts or 'several'} experts in each layer, {top_k or 'some'} for each token,"
    copies = "every expert is a copy of the dense feed-forward network"
    if noise:
        copies += f" with normal noise of {noise:g} of each tensor's standard deviation"
    deviation = real(recipe.get("router_std"))
    zeros = recipe.get("router") == "zeros" or not deviation
    router = "routers start at zero" if zeros else f"routers are drawn from N(0, {deviation:g}²)"
    return (
        f"{what} made from {_source(facts, entry)} by sparse upcycling "
        f"([2212.05055](https://arxiv.org/abs/2212.05055)): {copies}, {router}, everything else is carried over."
    )


def _source(facts: Facts, entry: Mapping[str, Any]) -> str:
    """The model of a receipt: of an adapter, what `facts.base` names is something else."""
    if facts.past and not facts.dense:
        return f"a dense model that was trained from {cited(facts, facts.past[0])}"
    if facts.kind == "model":
        return cited(facts, entry)
    base, _, name = origin(entry)
    return cited(facts, entry) if base else f"the dense model {plain(name)}"


def _adapter(facts: Facts, entry: Mapping[str, Any]) -> str:
    recipe = mapping(entry.get("recipe"))
    if recipe.get("baseline"):
        return (
            f"{_subject(facts)} for {cited(facts)}: the control of adapter experts, one plain LoRA with about as many "
            "parameters as they would have."
        )
    kind = _EXPERTS.get(str(recipe.get("expert_type")), "small experts")
    loras = recipe.get("from_lora")
    names = [plain(name, 80) for name in loras if isinstance(name, str)] if isinstance(loras, list) else []
    taken = f"; they are the LoRAs {joined(names)}" if names else ""
    return f"Small experts and a router in every layer of {cited(facts)}, which stays frozen: {kind}{taken}."


def _training(facts: Facts, entry: Mapping[str, Any]) -> str:
    recipe = mapping(entry.get("recipe"))
    earlier = next(at for at, other in enumerate(facts.own) if other is entry)
    before = {other.get("made") for other in facts.own[:earlier]}
    trained = recipe.get("train")
    what = _TRAINED.get(trained, _TRAINED["all"]) if isinstance(trained, str) else _TRAINED["all"]
    if "adapter" in before and "merge" not in before and trained != "router":
        what = "the adapter was trained"
    elif trained == "lora" and recipe.get("lora_keep") is True:
        what = "the LoRA was trained on it"
    again = " again" if "training" in before else ""
    text = f"{what}{again}{_length(entry)}."
    return f"Then {text}" if before else f"{text[0].upper()}{text[1:]}"


def _length(entry: Mapping[str, Any]) -> str:
    """How long a training was."""
    steps, tokens = whole(entry.get("steps")), whole(entry.get("tokens"))
    return (f" for {steps:,} steps" if steps is not None else "") + (f", {tokens:,} tokens" if tokens else "")


def _merge(facts: Facts, entry: Mapping[str, Any]) -> str:
    recipe = mapping(entry.get("recipe"))
    compact = recipe.get("to") == "compact"
    how = (
        "the shared expert is the dense feed-forward network, the routed ones are the adapter's"
        if compact
        else "every expert became a feed-forward network of its own"
    )
    made = f"Then both were merged into this model, {_model(facts)[:1].lower()}{_model(facts)[1:]}{_of_experts(facts)}"
    if not facts.last("adapter"):
        made = f"{_model(facts)}{_of_experts(facts)}, merged from {cited(facts, entry)} and adapter experts"
    return f"{made}: {how}."
