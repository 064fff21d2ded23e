"""How to load an output, by each program that reads it, and what those do not compute."""

from collections.abc import Iterator, Mapping
from typing import Any

from upcycle.card.facts import Facts
from upcycle.card.markdown import fenced, plain
from upcycle.card.values import mapping, origin, whole
from upcycle.checkpoint.adapter import EXPERTS
from upcycle.families.pairs import TARGETS

_VLLM_CHECKED = "With vLLM (not run; its loader's names, shapes and config were compared with those of such a model):"

_LLAMA_ROPES = ("default", "linear", "yarn", "llama3")
"""Types of rope scaling that `make interop` has compared in llama.cpp."""

_VLLM = ("mixtral", "llama", "mistral")
_LLAMA_CPP = ("mixtral", "llama", "mistral", "granitemoeshared")


def use(facts: Facts, repo_id: str) -> str:
    """Return how to load it, as markdown: only what is known to compute the same."""
    return "\n\n".join(_adapter(facts, repo_id) if facts.kind == "adapter" else _model(facts, repo_id))


def limits_of_readers(facts: Facts) -> tuple[str, ...]:
    """Return what other programs do not compute of this model, a sentence each."""
    kind = facts.config.get("model_type")
    try:
        return TARGETS[kind].reader_limits(facts.config) if facts.kind == "model" and isinstance(kind, str) else ()
    except (KeyError, TypeError, AttributeError, ValueError):  # another program's config, or none of a known model
        return ()


def _model(facts: Facts, repo_id: str) -> Iterator[str]:
    yield "With transformers (no code of its own, no plugin):"
    yield fenced("python", _TRANSFORMERS.format(repo=repo_id, **_CHAT[facts.chats]))
    computes = _computes_silu(facts) and facts.config.get("model_type")
    if computes in _VLLM:
        checked = computes == "mixtral"
        yield _VLLM_CHECKED if checked else "With vLLM:"
        yield fenced("bash", f"vllm serve {repo_id}")
    if computes in _LLAMA_CPP and _rope_is_known(facts):
        name = repo_id.rpartition("/")[2]
        yield "With llama.cpp, from a copy of this repository:"
        yield fenced("bash", _LLAMA_CPP_LINES.format(repo=repo_id, name=name))


def _adapter(facts: Facts, repo_id: str) -> Iterator[str]:
    base = facts.base or "PATH-OF-THE-MODEL"
    revision = f', revision="{facts.revision}"' if facts.base and facts.revision else ""
    experts = facts.config.get("peft_type") == EXPERTS
    yield (
        "With transformers, peft 0.21 and upcycle (`pip install upcycle`), which registers its experts with peft:"
        if experts
        else "With transformers and peft; upcycle is not needed:"
    )
    register = "import upcycle.adapters  # registers the method with peft\n" if experts else ""
    yield fenced("python", register + _PEFT.format(repo=repo_id, base=base, revision=revision, **_CHAT[facts.chats]))
    if not facts.base:
        called = f", called `{_name(facts.name)}`," if facts.name else ""
        yield f"The model that it belongs to{called} was a directory when the adapter was made, and is not in here."
    if experts:
        yield "vLLM and llama.cpp do not read these experts." + _merging(facts)


def _name(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-_. @/" else "_" for character in name[:100])


def _merging(facts: Facts) -> str:
    kind, experts = facts.config.get("expert_type"), facts.experts
    if kind == "pesc" or facts.config.get("routing") == "top1" or len(experts) > 1:
        return " No stock model computes them, so that they cannot be merged into one either."
    to = "compact" if kind == "bottleneck" else "full"
    return f" `upcycle merge ADAPTER OUT --to {to}` writes a model that plain transformers reads."


def _computes_silu(facts: Facts) -> bool:
    return bool(facts.config.get("hidden_act", "silu") == "silu")


def _rope_is_known(facts: Facts) -> bool:
    config = facts.config
    rope = mapping(config.get("rope_parameters")) or mapping(config.get("rope_scaling"))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if config.get("model_type") != "granitemoeshared":
        return kind in _LLAMA_ROPES
    head, heads, hidden = (whole(config.get(name)) for name in ("head_dim", "num_attention_heads", "hidden_size"))
    return kind in _LLAMA_ROPES[:-1] and (head is None or head * (heads or 0) == hidden)


def cited(facts: Facts, entry: Mapping[str, Any] | None = None) -> str:
    """Return the model that this, or an entry of its lineage, was made from, as a link where it is on the Hub."""
    base, revision, _ = origin(entry or {})
    if base in (None, facts.base):
        base, revision = facts.base, revision or facts.revision
    if base:
        at = f" at `{revision[:12]}`" if revision else ""
        return f"[{plain(base)}](https://huggingface.co/{base}){at}"
    return f"the dense model {plain(facts.name)}" if facts.name else "a dense model"


_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="auto", device_map="auto")
{encode}
output = model.generate(**inputs.to(model.device), max_new_tokens=64)
print(tokenizer.decode(output[0], skip_special_tokens=True))"""

_PEFT = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}"{revision}, dtype="auto")
model = PeftModel.from_pretrained(base, "{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
{encode}
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0], skip_special_tokens=True))"""

_CHAT = {
    True: {
        "encode": 'messages = [{"role": "user", "content": "What is the capital of France?"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)'
    },
    False: {"encode": 'inputs = tokenizer("The capital of France is", return_tensors="pt")'},
}

_LLAMA_CPP_LINES = """\
hf download {repo} --local-dir {name}
python convert_hf_to_gguf.py {name} --outfile {name}.gguf
llama-cli -m {name}.gguf -p "The capital of France is" """
