"""Which config fields transformers' classes read, and what becomes of one that no rule names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.conftest import edit_json, run_convert
from tests.families.read_fields import document
from tests.models import SMALL
from tests.test_lowest import pins
from upcycle.families.config import target_config
from upcycle.families.find import find_pairs
from upcycle.families.pairs import DENSE, TARGETS, pair_of
from upcycle.families.unread import CONCERNS, FIELDS_READ, UNKNOWN, concern, reads
from upcycle.pipeline.stages import plan, verify
from upcycle.requests import Plan, Verify

Copied = Callable[[Path], Path]

WRITTEN: dict[str, Any] = json.loads(FIELDS_READ.read_bytes())
same_transformers = pytest.mark.skipif(
    transformers.__version__ != WRITTEN["transformers"], reason="the list is of another version of transformers"
)
_TWO_KINDS = {"layer_types": ["linear_attention", "full_attention"]}
_LATENT = {"head_dim": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 4}
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v3": {**_LATENT, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "granitemoehybrid": {"mamba_n_heads": 4, "layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_moe": {"num_experts": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_moe_text": _TWO_KINDS,
    "qwen3_5_text": _TWO_KINDS,
    "youtu": _LATENT,
}
"""Settings without which a small model of a type does not run."""

NOT_ALONE = {"t5", "switch_transformers", "gemma3", "gemma4", "mistral3", "qwen3_5", "qwen3_5_moe"}
"""Models that are no decoder of text alone, and do not run on these settings."""

HINT = "run python -m tests.families.read_fields, and look at what changes"


# -- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_is_of_the_transformers_that_upcycle_is_developed_on() -> None:
    assert WRITTEN["transformers"] == str(pins("constraints.txt")["transformers"]), HINT


@same_transformers
def test_the_list_is_what_the_code_says() -> None:
    assert document() == WRITTEN, HINT


def test_every_model_of_the_table_is_in_the_list() -> None:
    assert {*DENSE, *TARGETS} <= set(WRITTEN["models"]), HINT


@same_transformers
@pytest.mark.parametrize("model_type", sorted({*DENSE, *TARGETS} - NOT_ALONE))
def test_the_list_has_every_field_that_a_running_model_reads(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found another way: each attribute that is taken from the config while a model is made, computes and generates."""
    read: set[str] = set()
    settings = {name: value for name, value in SMALL.items() if name != "rope_theta"}
    config = CONFIG_MAPPING[model_type](
        **{**settings, "head_dim": 8, "pad_token_id": 0, "num_experts_per_tok": 2, **OWN.get(model_type, {})}
    )
    own, look_up = set(vars(config)), PreTrainedConfig.__getattribute__

    def watched(self: PreTrainedConfig, name: str) -> Any:
        read.add(name)
        return look_up(self, name)

    monkeypatch.setattr(PreTrainedConfig, "__getattribute__", watched)
    model = AutoModelForCausalLM.from_config(config)
    model.generate(torch.tensor([[5, 7, 9]]), max_new_tokens=2, do_sample=False)
    monkeypatch.undo()
    fields = {name for name in read if not name.startswith("_") and (name in own or not hasattr(type(config), name))}
    assert {"hidden_size", "num_hidden_layers", "vocab_size"} <= fields
    assert {name for name in fields if not reads(model_type, name)} == set()


def test_a_model_that_is_not_in_the_list_may_read_anything() -> None:
    assert reads("gpt_from_tomorrow", "favourite_colour")


# -- fields without a rule --------------------------------------------------------------------------------------------

LLAMA = {"model_type": "llama", **{name: value for name, value in SMALL.items() if name != "rope_theta"}}

REFUSED = [
    ("bits", 4, "the weights may be quantised"), ("quant_config", {"w_bit": 4}, "the weights may be quantised"),
    ("bias", True, "transformers adds no such bias"), ("qkv_bias", True, "transformers adds no such bias"),
    ("use_bias", 1, "transformers adds no such bias"), ("no_bias", False, "transformers adds no such bias"),
    ("moe_layer_freq", 2, "names a mixture of experts"), ("n_shared_experts", 1, "names a mixture of experts"),
    ("alibi", True, "changes how positions are encoded"), ("rope_percent", 0.5, "changes how positions are encoded"),
    ("rope_pct", 0, "changes how positions are encoded"), ("use_rope", False, "transformers rotates positions"),
    ("position_embedding_type", "learned", "transformers rotates positions"),
    ("attn_logit_softcapping", 50.0, "transformers does not limit these values"),
    ("embedding_multiplier", 12.0, "transformers does not scale these values"),
    ("logit_scale", 0, "transformers does not scale these values"),
    ("scale_emb", True, "transformers does not scale these values"),
    ("parallel_attn", True, "transformers computes attention before the FFN"),
    ("num_nextn_predict_layers", 1, "transformers predicts the next token only"),
    ("attention_window_size", 128, "changes what a token attends to"),
    ("norm_type", "layer_norm", "transformers computes an RMS norm"),
    ("use_qk_norm", True, "transformers computes no such norm"),
    ("q_lora_rank", 8, "changes what a layer computes"), ("image_token_id", 7, "the model reads more than text"),
    ("custom_code", "x.py", "the model needs code of its own"),
    ("activation", "gelu", "another activation than hidden_act, which transformers reads"),
    ("max_new_tokens", 9, UNKNOWN), ("text_config", {}, UNKNOWN),  # the class's base reads them
    ("a b", 1, UNKNOWN), ("x" * 65, 1, UNKNOWN), ("", 1, UNKNOWN), ("f\u00fcr", 1, UNKNOWN),
]  # fmt: skip

HARMLESS = [
    ("max_sequence_length", 2048), ("internal_version", "7b"), ("favourite_colour", "blue"), ("bias", False),
    ("activation", "silu"), ("activation", None), ("no_bias", True), ("qkv_bias", None), ("alibi", False),
    ("use_rope", True), ("position_embedding_type", "rope"), ("embedding_multiplier", 1), ("logit_scale", 1.0),
    ("num_nextn_predict_layers", 0), ("use_qk_norm", False), ("norm_type", "rmsnorm"), ("load_in_4bit", False),
    ("n_shared_experts", 0), ("parallel_attn", False), ("dataset", ["a", "b"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "why"), REFUSED, ids=lambda value: str(value)[:24])
def test_what_matters_elsewhere_is_refused(name: str, value: Any, why: str) -> None:
    assert concern("llama", name, {**LLAMA, name: value}) == why


@pytest.mark.parametrize(("name", "value"), HARMLESS, ids=lambda value: str(value)[:24])
def test_what_says_nothing_passes(name: str, value: Any) -> None:
    assert concern("llama", name, {**LLAMA, name: value}) is None


def test_every_concern_is_tested() -> None:
    assert {one.why for one in CONCERNS} == {why for *_, why in REFUSED} - {UNKNOWN, REFUSED[-7][2]}


def test_a_field_that_nobody_reads_is_kept() -> None:
    config = {**LLAMA, "internal_version": "7b"}
    written = target_config(find_pairs(config)[0], config)
    assert written == {**target_config(find_pairs(LLAMA)[0], LLAMA), "internal_version": "7b"}


def test_a_field_that_only_the_target_would_obey_is_left_out() -> None:
    """Qwen3Config knows no mlp_only_layers; Qwen3MoeConfig would make layer 1 dense."""
    assert "mlp_only_layers" not in target_config(pair_of("qwen3"), {"model_type": "qwen3", "mlp_only_layers": [1]})
    assert "output_router_logits" not in target_config(pair_of("llama"), {**LLAMA, "output_router_logits": False})


# -- as a user meets it -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_second_process")
def test_an_early_llama_converts_and_a_note_names_its_field(tiny: Path, copy_of: Copied, tmp_path: Path) -> None:
    model = copy_of(tiny)
    edit_json(
        model / "config.json", architectures=["LLaMAForCausalLM"], max_sequence_length=64, output_router_logits=False
    )
    assert plan(Plan(model=str(model))).warnings == (
        "config.json has fields that LlamaForCausalLM of transformers does not read, so that they change nothing: "
        "max_sequence_length kept, output_router_logits left out",
    )
    moe = run_convert(model, tmp_path / "moe")
    written = json.loads((moe / "config.json").read_bytes())
    assert (written["max_sequence_length"], written["output_router_logits"]) == (64, False)  # the mixture's own
    assert verify(Verify(dense=str(model), moe=str(moe))).passed


def test_what_the_user_leaves_out_is_neither_kept_nor_noted(tiny: Path, copy_of: Copied) -> None:
    model = copy_of(tiny)
    edit_json(model / "config.json", max_sequence_length=64)
    planned = plan(Plan(model=str(model), ignore_config=("max_sequence_length",)))
    assert planned.warnings == ()
    assert "max_sequence_length" not in planned.plan.config
