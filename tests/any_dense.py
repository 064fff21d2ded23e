"""Small dense models without a mixture of experts, one of each architecture, and the adapter experts they get in tests.

They are stock classes of transformers with random weights: biases that are not zero, norm weights that are not one.
Kinds of experts, of FFNs and of routing meet pairwise.
"""

import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.models import draw_weights
from tests.training import run_train
from upcycle.adapters import ExpertsConfig
from upcycle.checkpoint.reader import TOKENIZER_FILES, present_files
from upcycle.pipeline import stages
from upcycle.pipeline.locate import BUILT_IN
from upcycle.requests import Attach

VOCABULARY = 2048  # of the built-in tokenizer
IDS = (torch.arange(24) * 37 % VOCABULARY).view(2, 12)
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
GPT: dict[str, Any] = {
    **{name: SMALL[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
}  # fmt: skip
GEMMA4: dict[str, Any] = {
    "global_head_dim": 12, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
    "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 6,
}  # fmt: skip
GRANITE4: dict[str, Any] = {
    "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 48, "mamba_n_heads": 4,
    "mamba_d_state": 6, "mamba_chunk_size": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
LINEAR: dict[str, Any] = {
    "linear_key_head_dim": 6, "linear_value_head_dim": 10, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
ALL_HEADS = {"num_key_value_heads": 4}


@dataclass(frozen=True)
class Case:
    """A small model and the experts that it gets."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)  # of the config, beside SMALL
    asked: dict[str, Any] = field(default_factory=dict)  # of `attach`
    base: dict[str, Any] = field(default_factory=lambda: SMALL)


CASES: dict[str, Case] = {
    # gated
    "cohere": Case("lora", {"use_qk_norm": True, **ALL_HEADS}, {"routing": "top1"}),
    "cohere2": Case("bottleneck", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "cwm": Case("lora", {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}),
    "ernie4_5": Case("ia3", {"use_bias": True}, {"attention_rank": 2}),
    "exaone4": Case("pesc", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "gemma": Case("bottleneck", {}, {"attention_rank": 2, "routing": "dense"}),
    "gemma2": Case("lora", {"sliding_window": 8, "query_pre_attn_scalar": 11}, {"shared_a": True}),
    "gemma3_text": Case("ia3", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "gemma4_text": Case("ia3", GEMMA4),
    "granite": Case("pesc", {"mlp_bias": True, "attention_bias": True, "residual_multiplier": 0.3}),
    "helium": Case("lora", {}, {"routing": "dense"}),
    "hunyuan_v1_dense": Case("ia3", {}, {"routing": "top1"}),
    "lfm2": Case("lora", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "ministral": Case("lora", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "ministral3": Case("bottleneck", {"sliding_window": 8}),
    "olmo": Case("bottleneck", {"clip_qkv": 4.0}, {"experts": (2, 4)}),
    "olmo2": Case("lora", {}, {"attention_rank": 2}),
    "olmo3": Case("pesc", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "qwen2": Case("pesc", {"tie_word_embeddings": True}, {"attention_rank": 2, "routing": "top1"}),
    "qwen3_5_text": Case("pesc", {"layer_types": ["linear_attention", "full_attention"], **LINEAR}),
    "seed_oss": Case("lora", {"mlp_bias": True, "attention_out_bias": True, "residual_dropout": 0.3}),
    "smollm3": Case("ia3", {"no_rope_layers": [1, 0]}, {"routing": "dense"}),
    "stablelm": Case("lora", {"use_qkv_bias": True, "partial_rotary_factor": 0.5, "qk_layernorm": True}),
    # gated, in one matrix
    "glm": Case("lora", {"attention_bias": True}, {"attention_rank": 2}),
    "granitemoehybrid": Case("bottleneck", GRANITE4),
    "glm4": Case("bottleneck", {"attention_bias": True}, {"routing": "top1"}),
    # ungated
    "apertus": Case("lora", {}, {"shared_a": True}),
    "arcee": Case("ia3", {"mlp_bias": True}, {"attention_rank": 2}),
    "codegen": Case("pesc", {"rotary_dim": 4}, {"attention_rank": 2}, GPT),
    "falcon": Case("lora", {"new_decoder_architecture": True, "bias": True, "num_kv_heads": 2, "ffn_hidden_size": 48}),
    "gpt_bigcode": Case("lora", {"multi_query": True}, {"attention_rank": 2}, GPT),
    "gpt_neox": Case("bottleneck", {"rotary_pct": 0.5}, {"attention_rank": 2}),
    "gptj": Case("ia3", {"rotary_dim": 4}, {"routing": "dense"}, GPT),
    "jais2": Case("bottleneck", {"mlp_bias": True}, {"routing": "dense"}),
    "nanochat": Case("pesc", ALL_HEADS),
    "nemotron": Case("pesc", {"mlp_bias": True, "attention_bias": True}, {"routing": "top1"}),
    "persimmon": Case("lora", {"qk_layernorm": True}, {"experts": (0, 3)}),
    "phi": Case("lora", {"partial_rotary_factor": 0.5}, {"attention_rank": 2, "routing": "dense"}),
    "starcoder2": Case("lora", {"use_bias": True, "residual_dropout": 0.2, "sliding_window": 8}),
}
"""`model_type` -> what is tried on it."""


def save_model(model_type: str, directory: Path, **more: Any) -> Path:
    """Save a small random model with the built-in tokenizer; of SMALL its config takes what it knows."""
    case = CASES.get(model_type, Case("lora"))
    config_class = CONFIG_MAPPING[model_type]
    known = {*config_class().to_dict(), *config_class.attribute_map, "num_key_value_heads"}
    settings = {name: value for name, value in case.base.items() if name in known}
    torch.manual_seed(sum(model_type.encode()))
    model = AutoModelForCausalLM.from_config(config_class(**{**settings, **case.fields, **more}))
    draw_weights(model).to(torch.float32).save_pretrained(directory)
    for path in present_files(BUILT_IN["demo:tiny"], TOKENIZER_FILES):
        shutil.copyfile(path, directory / path.name)
    return directory


def load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        said: Tensor = model(input_ids=IDS).logits
    return said


def attach(model: Path, out: Path, kind: str, **asked: Any) -> Path:
    """Attach four experts of rank 8, or what takes no number or rank; return OUT."""
    composed = "from_lora" in asked
    settings: dict[str, Any] = {"expert_type": kind, "experts": (4,), "rank": None if kind == "ia3" else 8}
    settings |= {"experts": (), "rank": None} if composed else {}
    stages.attach(Attach(model=str(model), out=str(out), **{**settings, **asked}))
    return out


def wrap(model: Any, **fields: Any) -> Any:
    """The model with four experts a layer of rank 4."""
    settings = {"num_experts": 4, "rank": 4, "router_std": 0.5, "task_type": "CAUSAL_LM", **fields}
    with warnings.catch_warnings():  # peft asks transformers by a name that it is giving up
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, ExpertsConfig(**settings))


def trained_on(text: Path, adapter: Path, out: Path) -> Path:
    """Train an adapter for two steps."""
    return run_train(adapter, out, text, seq_len=16, batch_size=2, max_steps=2, lr=0.1, warmup_steps=0)
