"""The same request writes the same bytes as before: plan hashes, receipts and every file, recorded in unchanged.json.

`python -m tests.build.test_unchanged` records anew. Only what names a version or a place is left out of the comparison.
Models and adapters are drawn by NumPy, so that they are the same whatever torch is installed.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.merging import run_merge
from tests.models import SMALL
from upcycle.checkpoint.header import build_header, tensor_bytes
from upcycle.checkpoint.identity import fingerprint
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.pipeline.locate import BUILT_IN
from upcycle.pipeline.stages import run
from upcycle.plan.draws import keyed_generator
from upcycle.requests import Attach, Convert

RECORDED = Path(__file__).parent / "unchanged.json"

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]

CONVERSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("tiny", {}),
    "one-expert": ("llama", {"experts": 1, "top_k": 1, "allow_dead_router": True}),
    "noise": ("llama", {"experts": 4, "noise": 0.05, "seed": 3}),
    "noise-f16": ("mistral", {"experts": 3, "top_k": 3, "noise": 0.5, "dtype": "f16"}),
    "zeros": ("mistral", {"experts": 4, "router": "zeros", "max_shard_size": "40KB"}),
    "wide-router": ("tiny", {"experts": 4, "router_std": 0.3, "seed": 2**40, "dtype": "f32", "workers": 2}),
    "bf16": ("mistral", {"experts": 2, "top_k": 1, "allow_dead_router": True, "dtype": "bf16"}),
    "shards": ("llama", {"experts": 5, "max_shard_size": "70kB", "check_finite": True}),
    "tokenizer": ("llama", {"experts": 2, "tokenizer": "tiny"}),
    "template": ("tiny", {"experts": 2, "chat_template": "template.jinja", "max_shard_size": "1MB"}),
    "ignored": ("odd", {"experts": 4, "ignore_config": ("made_up",), "noise": 0.1, "max_shard_size": "1KiB"}),
}

ATTACHMENTS: dict[str, dict[str, Any]] = {
    "lora": {"experts": (4,), "rank": 8},
    "shared": {"experts": (2, 4), "shared_a": True, "scaling": 0.5, "attention_rank": 4, "seed": 7},
    "bottleneck": {"expert_type": "bottleneck", "routing": "dense", "router": "zeros"},
    "pesc": {"expert_type": "pesc", "experts": (3,), "routing": "top1", "top_k": 1, "router_std": 0.1},
    "ia3": {"expert_type": "ia3", "experts": (4,), "top_k": 3},
    "baseline": {"baseline": "single-lora", "experts": (4,), "attention_rank": 2},
}

MERGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({"expert_type": "lora", "attention_rank": 3}, {"dtype": "f32"}),
    "lora-shared": ({"expert_type": "lora", "shared_a": True, "routing": "dense"}, {"max_shard_size": "90kB"}),
    "ia3": ({"expert_type": "ia3"}, {"dtype": "bf16"}),
    "bottleneck": ({"expert_type": "bottleneck", "scaling": 1.0}, {"dtype": "f16"}),
    "granite": ({"expert_type": "bottleneck", "attention_rank": 2}, {"to": "compact"}),
    "qwen": ({"expert_type": "bottleneck", "num_experts": [5, 5]}, {"to": "compact", "target": "qwen2_moe"}),
}


class Scene:
    """Models and adapters below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "template.jinja").write_text("{{ messages[0]['content'] }}")

    def base(self, name: str) -> Path:
        if name == "tiny":
            return BUILT_IN["demo:tiny"]
        directory = self.root / name
        if not directory.exists():
            directory.mkdir()
            fields: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
            if name == "mistral":
                fields = {"model_type": "mistral", "sliding_window": 7, "tie_word_embeddings": True}
            if name == "odd":
                fields |= {"made_up": 1, "num_key_value_heads": None, "torch_dtype": "bfloat16"}
            config = {**SMALL, "hidden_act": "silu", "tie_word_embeddings": False, **fields}
            (directory / "config.json").write_text(json.dumps(config))
            draw(directory / "model.safetensors", dense_tensors(config, "F32" if name == "mistral" else "BF16"))
        return directory

    def adapter(self, name: str, settings: Mapping[str, Any]) -> Path:
        base, directory = self.base("llama"), self.root / f"adapter-{name}"
        directory.mkdir()
        config = {
            "num_experts": [4, 4], "top_k": 2, "routing": "topk", "rank": 8, "scaling": 1.5, "shared_a": False,
            "attention_rank": 0, "attention_scaling": 0.5, **settings, "peft_type": "UPCYCLE",
            "base_model_name_or_path": str(base), "base_fingerprint": fingerprint(open_checkpoint(base)),
        }  # fmt: skip
        (directory / "adapter_config.json").write_text(json.dumps(config))
        draw(directory / "adapter_model.safetensors", adapter_tensors(config))
        return directory

    def convert(self, name: str) -> dict[str, str]:
        model, fields = CONVERSIONS[name]
        fields = {**fields}
        if "tokenizer" in fields:
            fields["tokenizer"] = str(self.base(fields["tokenizer"]))
        if "chat_template" in fields:
            fields["chat_template"] = str(self.root / fields["chat_template"])
        out = self.root / f"convert-{name}"
        drafted = run(Convert(model=str(self.base(model)), out=str(out), **fields))
        return {"plan": drafted.plan.hash, **digests(out)}

    def attach(self, name: str) -> dict[str, str]:
        out = self.root / f"attach-{name}"
        run(Attach(model=str(self.base("llama")), out=str(out), **ATTACHMENTS[name]))
        return digests(out)

    def merge(self, name: str) -> dict[str, str]:
        settings, fields = MERGES[name]
        out = self.root / f"merge-{name}"
        merged = run_merge(self.adapter(name, settings), self.base("llama"), out, **fields)
        return {"plan": merged.plan.hash, **digests(out)}


def dense_tensors(config: Mapping[str, Any], dtype: str) -> Tensors:
    D, F, V, heads = (
        config[name] for name in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads")
    )
    K = D // heads * (config["num_key_value_heads"] or heads)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (V, D), "model.norm": (D,)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in {
                "input_layernorm": (D,), "post_attention_layernorm": (D,), "mlp.gate_proj": (F, D),
                "mlp.up_proj": (F, D), "mlp.down_proj": (D, F), "self_attn.q_proj": (D, D),
                "self_attn.k_proj": (K, D), "self_attn.v_proj": (K, D), "self_attn.o_proj": (D, D),
            }.items()
        }  # fmt: skip
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (V, D)
    return {f"{name}.weight": ("F32" if "norm" in name else dtype, shape) for name, shape in shapes.items()}


def adapter_tensors(config: Mapping[str, Any]) -> Tensors:
    D, F, R, rank = SMALL["hidden_size"], SMALL["intermediate_size"], config["rank"], config["attention_rank"]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, E in enumerate(config["num_experts"]):
        A = 1 if config["shared_a"] else E
        kinds: dict[str, dict[str, tuple[int, ...]]] = {
            "lora": {"gate_A": (A, R, D), "gate_B": (E, F, R), "up_A": (A, R, D), "up_B": (E, F, R),
                     "down_A": (A, R, F), "down_B": (E, D, R)},
            "bottleneck": {"gate_proj": (E, R, D), "up_proj": (E, R, D), "down_proj": (E, D, R)},
            "ia3": {"scale": (E, F)},
        }  # fmt: skip
        start = f"base_model.model.model.layers.{layer}."
        named = kinds[config["expert_type"]]
        shapes |= {f"{start}mlp.upcycle_experts.{name}": shape for name, shape in named.items()}
        shapes[f"{start}mlp.upcycle_router.weight"] = (E, D)
        for name, height in (("q", D), ("k", D // 2), ("v", D // 2), ("o", D)) if rank else ():
            shapes[f"{start}self_attn.{name}_proj.upcycle_lora.lora_A"] = (rank, D)
            shapes[f"{start}self_attn.{name}_proj.upcycle_lora.lora_B"] = (height, rank)
    return {name: ("F32", shape) for name, shape in shapes.items()}


def draw(path: Path, tensors: Tensors) -> None:
    """Write uniform values, the same on every machine: Philox's bits are promised by NumPy."""
    with path.open("wb") as file:
        file.write(build_header([(name, dtype, shape) for name, (dtype, shape) in tensors.items()]))
        for name, (dtype, shape) in tensors.items():
            count = tensor_bytes("F32", shape) // 4
            bits = keyed_generator(name).integers(-(2**20), 2**20, count).astype(np.float32) / np.float32(2**21)
            values = bits.astype("<f4") if dtype == "F32" else (bits.view("<u4") >> 16).astype("<u2")
            file.write(values.tobytes())


def digests(out: Path) -> dict[str, str]:
    """Every file of `out` with the start of its SHA-256, but for what names versions and places."""
    return {
        path.name: hashlib.sha256(_comparable(path)).hexdigest()[:16]
        for path in sorted(out.iterdir())
        if path.is_file()
    }


def _comparable(path: Path) -> bytes:
    if path.name not in ("upcycle.json", "adapter_config.json"):
        return path.read_bytes()
    value = json.loads(path.read_bytes())
    for name in ("versions", "base_model_name_or_path", "peft_version"):
        value.pop(name, None)
    if "recipe" in value:
        value["files"].pop("adapter_config.json", None)
    return json.dumps(value).encode()


REQUESTS = [
    *(("convert", name) for name in CONVERSIONS),
    *(("attach", name) for name in ATTACHMENTS),
    *(("merge", name) for name in MERGES),
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"))


@pytest.mark.parametrize(("command", "name"), REQUESTS)
def test_the_bytes_are_those_of_before(scene: Scene, command: str, name: str) -> None:
    before = json.loads(RECORDED.read_text())
    assert getattr(scene, command)(name) == before[f"{command} {name}"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        made = Scene(Path(place))
        found = {f"{command} {name}": getattr(made, command)(name) for command, name in REQUESTS}
    RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(f"{len(found)} requests\n")
