"""The models that readers are given: a dense checkpoint, its mixture of experts, and what the dense one computes.

The reference is always this environment's transformers, in float32. Shapes: T positions, V vocabulary.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import upcycle
from tests.assets import fetch
from tests.drawn_adapters import draw_adapter, formula_model
from tests.interop.compare import Array
from tests.models import VARIANTS, save_dense
from upcycle.adapt.merge import merge
from upcycle.pipeline.locate import locate
from upcycle.requests.merge import Merge
from upcycle.text.read import read_text

GGUF = Path("build/assets/SmolLM2-135M-Instruct.gguf")
POSITIONS = 256
NEW_TOKENS = 64
VOCABULARY = 49152
"""Of SmolLM2's tokenizer, which small models get where a reader will not go without one."""

QUESTION = "Name three colours of the rainbow."
PROMPTS = (
    "The French Revolution began in 1789 when",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "A recipe for bread: first,",
    "The capital of France is",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
)


disable_progress_bar()


@dataclass(frozen=True)
class Greedy:
    """What the reference writes after a prompt, and how sure it was of each token: likeliest over second."""

    ids: Sequence[int]
    tokens: Sequence[int]
    text: str
    margins: Sequence[float]


@dataclass(frozen=True)
class Pair:
    """A converted model and the numbers that it must give."""

    name: str
    moe: Path
    ids: Array  # (T,)
    logits: Array  # (T, V)
    greedy: Sequence[Greedy] = field(default=())
    chat: str = ""

    def job(self, directory: Path) -> dict[str, Any]:
        """Write the ids where a reader's script looks for them, and return what it is asked."""
        np.save(directory / f"{self.name}.ids.npy", self.ids)
        prompts = PROMPTS if self.greedy else ()
        path = str(self.moe.resolve())
        return {"name": self.name, "model": path, "prompts": prompts, "question": QUESTION, "count": NEW_TOKENS}


def small(variant: str, root: Path) -> Pair:
    """Return a small random model of `tests.models.VARIANTS`, with 4 copies of its FFN."""
    dense = save_dense(variant, root / variant)
    moe = _convert(dense, root / f"{variant}-moe")
    return _random_text(variant, dense, moe)


def with_tokenizer(variant: str, root: Path) -> Pair:
    """Return the same with SmolLM2's vocabulary and tokenizer."""
    family, fields = VARIANTS[variant]
    name = f"{variant}_tokenizer"
    # llama.cpp's server takes no more tokens than max_position_embeddings
    VARIANTS[name] = (family, {**fields, "vocab_size": VOCABULARY, "max_position_embeddings": 2 * POSITIONS})
    dense = save_dense(name, root / name)
    del VARIANTS[name]
    moe = _convert(dense, root / f"{name}-moe", tokenizer=str(locate(str(fetch(GGUF)))))
    return _random_text(name, dense, moe)


def uneven(pair: Pair, root: Path) -> Pair:
    """Return a mixture whose experts differ and whose routers are decided, made from the dense model of `pair`.

    Copies hide it when a reader mixes experts up or weighs them wrongly. There is no dense model that computes the
    same, so the reference runs the mixture itself.
    """
    name = f"{pair.name}_uneven"
    dense = root / pair.name
    tokenizer = str(pair.moe) if (pair.moe / "tokenizer.json").exists() else None
    moe = _convert(dense, root / f"{name}-moe", noise=0.5, router_std=0.5, tokenizer=tokenizer)
    return _random_text(name, moe, moe)


def copies(name: str, dense: Path, moe: Path, **options: Any) -> Pair:
    """Return a mixture of copies with SmolLM2's tokenizer, whose vocabulary the dense model has."""
    return _random_text(name, dense, _convert(dense, moe, tokenizer=str(locate(str(fetch(GGUF)))), **options))


def differing(name: str, dense: Path, moe: Path, **options: Any) -> Pair:
    """Return the same with experts that differ; the reference runs the mixture itself, as in `uneven`."""
    options = {"noise": 0.5, "router_std": 0.5, **options}
    return _random_text(name, moe, _convert(dense, moe, tokenizer=str(locate(str(fetch(GGUF)))), **options))


def unnormalised(name: str, moe: Path, out: Path) -> Pair:
    """Return a Qwen2-MoE, whose reference is computed without `norm_topk_prob`: the cause of what readers make of it.

    The gates of the shared experts, whose outputs are zero, are drawn: llama.cpp computes NaN where they are zero.
    """
    shutil.copytree(moe, out, dirs_exist_ok=True)
    tensors = load_file(out / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for key in sorted(key for key in tensors if key.endswith("shared_expert_gate.weight")):
        tensors[key] = torch.randn(tensors[key].shape, generator=generator) * 0.3
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, norm_topk_prob=False).eval()
    ids_T = np.random.default_rng(0).integers(0, model.config.vocab_size, POSITIONS)
    return Pair(name, out, ids_T, _logits(model, ids_T))


def compact(pair: Pair, root: Path) -> Pair:
    """Return the dense model of `pair` with bottleneck experts drawn at random, as a GraniteMoeShared.

    The reference computes the experts by their formula (tests/drawn_adapters.py).
    """
    name = f"{pair.name}_compact"
    dense = root / pair.name
    adapter = draw_adapter(dense, root / f"{name}-adapter", "bottleneck", attention_rank=3)
    if (pair.moe / "tokenizer.json").exists():
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(pair.moe / file, adapter / file)
    moe = _merge(adapter, dense, root / f"{name}-moe")
    ids_T = np.random.default_rng(0).integers(0, int(pair.logits.shape[1]), POSITIONS)
    return Pair(name, moe, ids_T, _logits(formula_model(dense, adapter), ids_T))


def smollm2_compact(root: Path) -> Pair:
    """Return the real model with 8 bottlenecks of width 16 drawn at random, and what it writes after the prompts."""
    dense = locate(str(fetch(GGUF)))
    adapter = draw_adapter(dense, root / "SmolLM2-adapter", "bottleneck", std=0.1, num_experts=[8] * 30, rank=16)
    moe = _merge(adapter, dense, root / "SmolLM2-compact")
    tokenizer = AutoTokenizer.from_pretrained(dense)
    model = formula_model(dense, adapter)
    ids_T = np.array(tokenizer(read_text(None)).input_ids[:POSITIONS])
    greedy = [_greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    question = [{"role": "user", "content": QUESTION}]
    chat = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    return Pair("SmolLM2-compact", moe, ids_T, _logits(model, ids_T), greedy, chat)


def smollm2(root: Path, *, writing: bool = True) -> Pair:
    """Return the real model as 8 experts, 2 for each token, with what it writes after the prompts."""
    dense = locate(str(fetch(GGUF)))
    moe = _convert(dense, root / "SmolLM2-8x135M", experts=8)
    tokenizer = AutoTokenizer.from_pretrained(dense)
    model = _load(dense)
    ids_T = np.array(tokenizer(read_text(None)).input_ids[:POSITIONS])
    greedy = [_greedy(model, tokenizer, prompt) for prompt in PROMPTS if writing]
    question = [{"role": "user", "content": QUESTION}]
    chat = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    return Pair("SmolLM2-8x135M", moe, ids_T, _logits(model, ids_T), greedy, chat)


def _convert(dense: Path, moe: Path, *, experts: int = 4, **fields: Any) -> Path:
    request = upcycle.Convert(model=str(dense), out=str(moe), experts=experts, top_k=2, overwrite=True, **fields)
    upcycle.run(request)
    return moe


def _merge(adapter: Path, dense: Path, out: Path) -> Path:
    """Merge in float32, so that nothing is rounded."""
    request = Merge(adapter=str(adapter), out=str(out), to="compact", dtype="f32", overwrite=True)
    merge(adapter, dense, request, lambda _: lambda _: None)
    return out


def _random_text(name: str, reference: Path, moe: Path) -> Pair:
    model = _load(reference)
    ids_T = np.random.default_rng(0).integers(0, model.config.vocab_size, POSITIONS)
    return Pair(name, moe, ids_T, _logits(model, ids_T))


def _load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def _logits(model: Any, ids_T: Array) -> Array:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(ids_T)[None]).logits[0].numpy())


def _greedy(model: Any, tokenizer: Any, prompt: str) -> Greedy:
    batch = tokenizer(prompt, return_tensors="pt")
    start = batch["input_ids"].shape[1]
    whole = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)[0]
    with torch.no_grad():
        best = model(whole[None]).logits[0, start - 1 : -1].topk(2).values
    new = whole[start:]
    margins = (best[:, 0] - best[:, 1]).tolist()
    return Greedy(batch["input_ids"][0].tolist(), new.tolist(), tokenizer.decode(new), margins)
