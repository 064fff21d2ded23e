"""Adapters drawn at random, as they lie on disk, and what they compute by the formulas alone.

Nothing of upcycle computes here. Shapes: T tokens, E experts, D hidden, F intermediate, R rank or width, V vocabulary.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import AutoModelForCausalLM

from upcycle.checkpoint.identity import fingerprint
from upcycle.checkpoint.reader import open_checkpoint

PREFIX = "base_model.model.model.layers"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def draw_adapter(base: Path, directory: Path, kind: str, *, std: float = 0.3, **fields: Any) -> Path:
    """Save an adapter for the model in `base` none of whose tensors is zero."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = model.config
    layers, D, F = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    settings: dict[str, Any] = {
        "expert_type": kind, "num_experts": [4] * layers, "top_k": 2, "routing": "topk", "rank": 8, "scaling": 1.5,
        "shared_a": False, "attention_rank": 0, "attention_scaling": 0.5, **fields,
    }  # fmt: skip
    R, rank = settings["rank"], settings["attention_rank"]
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for layer, E in enumerate(settings["num_experts"]):
        A = 1 if settings["shared_a"] else E
        kinds: dict[str, dict[str, tuple[int, ...]]] = {
            "lora": {"gate_A": (A, R, D), "gate_B": (E, F, R), "up_A": (A, R, D), "up_B": (E, F, R),
                     "down_A": (A, R, F), "down_B": (E, D, R)},
            "bottleneck": {"gate_proj": (E, R, D), "up_proj": (E, R, D), "down_proj": (E, D, R)},
            "pesc": {"down_proj": (E, R, D), "up_proj": (E, D, R)},
            "ia3": {"scale": (E, F)},
        }  # fmt: skip
        named = {f"mlp.upcycle_experts.{name}": shape for name, shape in kinds[kind].items()}
        named["mlp.upcycle_router.weight"] = (E, D)
        for name in ATTENTION if rank else ():
            out, into = getattr(model.model.layers[layer].self_attn, name).weight.shape
            named[f"self_attn.{name}.upcycle_lora.lora_A"] = (rank, into)
            named[f"self_attn.{name}.upcycle_lora.lora_B"] = (out, rank)
        if E:
            for name, shape in named.items():
                tensors[f"{PREFIX}.{layer}.{name}"] = torch.randn(shape, generator=generator) * std
    return save_adapter(base, directory, settings, tensors)


def save_adapter(base: Path, directory: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Save an adapter with what the rest of its config needs."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "UPCYCLE", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base.resolve()),
        "base_fingerprint": fingerprint(open_checkpoint(base)), **settings,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def scale_tensors(directory: Path, ending: str, by: Tensor | float) -> None:
    """Multiply every tensor of an adapter whose name ends so."""
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: value * (by if name.endswith(ending) else 1) for name, value in tensors.items()}, path)


class Mixture(nn.Module):
    """An FFN with experts, written out expert by expert."""

    def __init__(self, ffn: Any, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.ffn, self.settings, self.tensors = ffn, settings, tensors

    def forward(self, x: Tensor) -> Tensor:
        x_TD = x.flatten(0, -2)
        E = len(self.tensors["upcycle_router.weight"])
        weights_TE = (x_TD @ self.tensors["upcycle_router.weight"].T).softmax(-1)
        kept = {"topk": self.settings["top_k"], "dense": E, "top1": 1}[self.settings["routing"]]
        least_T1 = weights_TE.topk(kept).values[:, -1:]
        weights_TE = weights_TE * (weights_TE >= least_T1)
        if self.settings["routing"] == "topk":
            weights_TE = weights_TE / weights_TE.sum(-1, keepdim=True)
        out_TED = torch.stack([self.expert(x_TD, number) for number in range(E)], 1)
        mixed_TD = (weights_TE[:, :, None] * out_TED).sum(1)
        if self.settings["expert_type"] in ("bottleneck", "pesc"):
            mixed_TD = self.ffn(x_TD) + self.settings["scaling"] * mixed_TD
        return mixed_TD.view(x.shape)

    def expert(self, x_TD: Tensor, number: int) -> Any:
        of = {name.removeprefix("upcycle_experts."): value for name, value in self.tensors.items()}
        one = {name: value[number if len(value) > 1 else 0] for name, value in of.items()}
        W = {name: getattr(self.ffn, f"{name}_proj").weight for name in ("gate", "up", "down")}
        act, s = self.ffn.act_fn, self.settings["scaling"]
        if self.settings["expert_type"] == "lora":
            W = {name: w + s * one[f"{name}_B"] @ one[f"{name}_A"] for name, w in W.items()}
            return (act(x_TD @ W["gate"].T) * (x_TD @ W["up"].T)) @ W["down"].T
        if self.settings["expert_type"] == "ia3":
            return ((1 + one["scale"]) * act(x_TD @ W["gate"].T) * (x_TD @ W["up"].T)) @ W["down"].T
        if self.settings["expert_type"] == "bottleneck":
            return (act(x_TD @ one["gate_proj"].T) * (x_TD @ one["up_proj"].T)) @ one["down_proj"].T
        return gelu(self.ffn(x_TD) @ one["down_proj"].T) @ one["up_proj"].T


def formula_model(base: Path, adapter: Path) -> Any:
    """Return the dense model, float32, with its FFNs replaced by `Mixture`s and its attention updated."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    settings = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            start = f"{PREFIX}.{number}."
            of = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            for name in ATTENTION:
                A, B = (of.get(f"self_attn.{name}.upcycle_lora.lora_{letter}") for letter in "AB")
                if A is not None and B is not None:
                    getattr(layer.self_attn, name).weight += settings["attention_scaling"] * B @ A
            inside = {name.removeprefix("mlp."): value for name, value in of.items() if name.startswith("mlp.")}
            layer.mlp = Mixture(layer.mlp, settings, inside)
    return model
