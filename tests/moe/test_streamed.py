"""Stock models of every family, run layer by layer from disk: they compute what transformers computes of the whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models import LLAMA3_ROPE, draw_weights
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.convert.parity import hidden_gradient, probe_routers
from upcycle.errors import CheckpointError
from upcycle.families.dense.dense import Spine
from upcycle.moe import load
from upcycle.moe.load import LayerCall, StreamedModel
from upcycle.moe.probe import LEARNING_RATE, probe_layer
from upcycle.moe.routing import Routing, find_routers, scoring_of, scoring_of_router, watch

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
GRANITE = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 5.0, "attention_multiplier": 0.2,
}  # fmt: skip
GEMMA4 = {
    "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5, "global_head_dim": 16,
    "num_global_key_value_heads": 2, "final_logit_softcapping": 2.0, "tie_word_embeddings": True,
    "vocab_size_per_layer_input": 96,
}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
LFM2 = {"layer_types": ["conv", "full_attention"], "tie_word_embeddings": True}
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = {
    "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip

DENSE: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3_ROPE, "attention_bias": True},
    "granite": GRANITE,
    "granite_swa": {**GRANITE, **WINDOWED},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 2.0, "sliding_window": 5},
    "gemma3_text": WINDOWED,
    "gemma4_text": {
        **GEMMA4,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 1,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "cohere2": {"logit_scale": 0.3, "sliding_window": 5, "tie_word_embeddings": True},
    "olmo2": {},
    "olmo3": WINDOWED,
    "ernie4_5": {"use_bias": True},
    "lfm2": {**LFM2, "block_auto_adjust_ff_dim": False},
    "qwen3_5_text": LINEAR,
    "phi": {"partial_rotary_factor": 0.5},
    "youtu": LATENT,
}
"""Model type -> its config besides SMALL. Phi's output head has a bias; Gemma 4's last layer has keys of its first."""

MIXTURES: dict[str, tuple[dict[str, Any], str, int]] = {
    "mixtral": (LOCAL, "softmax", 2),
    "granitemoe": ({**LOCAL, **GRANITE}, "softmax", 2),
    "granitemoeshared": ({**LOCAL, **GRANITE, "shared_intermediate_size": 24}, "softmax", 2),
    "granitemoe_swa": ({**LOCAL, **GRANITE, **WINDOWED}, "softmax", 2),
    "cohere2_moe": ({**EXPERTS, "logit_scale": 0.3, "num_shared_experts": 0}, "softmax", 2),
    "flex_olmo": (EXPERTS, "softmax", 2),
    "ernie4_5_moe": ({"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}, "softmax", 1),
    "glm4_moe": (ROUTED, "sigmoid", 1),
    "solar_open": (ROUTED, "sigmoid", 2),
    "dots1": ({**ROUTED, "layer_types": ["full_attention"] * 2}, "sigmoid", 1),
    "hy_v3": ({**EXPERTS, "num_local_experts": 4}, "sigmoid", 1),
    "deepseek_v3": ({**ROUTED, **LATENT}, "sigmoid", 1),
    "lfm2_moe": ({**EXPERTS, **LFM2, "num_dense_layers": 1, "use_expert_bias": True}, "sigmoid", 1),
    "qwen3_5_moe_text": ({**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 24}, "softmax", 2),
    "hunyuan_v1_moe": ({"num_experts": 4, "moe_topk": 2}, "softmax", 2),
    "gemma4_text": (
        {**EXPERTS, **GEMMA4, "enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 0,
         "num_kv_shared_layers": 0},
        "softmax", 2,
    ),
}  # fmt: skip
"""Model type -> its config besides SMALL, how its routers score, in how many of its layers they are, the last ones."""

NORMS = {"lfm2": "model.embedding_norm", "lfm2_moe": "model.embedding_norm", "phi": "model.final_layernorm"}


def save(kind: str, fields: dict[str, Any], directory: Path) -> tuple[Any, StreamedModel]:
    """Save a model whose every weight and stored buffer is drawn; return it whole, as it loads, and streamed."""
    torch.manual_seed(0)
    model = draw_weights(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **fields})))
    stored = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in stored:
            buffer.uniform_(0.5, 1.5)
    model.save_pretrained(directory)
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    spine = Spine(norm=NORMS.get(kind, "model.norm"))
    return whole, StreamedModel(open_checkpoint(directory), spine)


def random_ids() -> Tensor:
    return torch.randint(3, 96, (1, 24), generator=torch.Generator().manual_seed(1))


def run(model: StreamedModel) -> tuple[list[LayerCall], Tensor]:
    """Return what the layers are called with, and the final hidden states `(T, D)`."""
    calls: list[LayerCall] = []
    return calls, model.run(random_ids(), lambda _index, call: calls.append(call))[0]


CASES = [pytest.param(kind, fields, id=kind) for kind, fields in DENSE.items()]
CASES += [pytest.param(kind, fields, id=f"{kind} with experts") for kind, (fields, _, _) in MIXTURES.items()]


@pytest.mark.parametrize(("kind", "fields"), CASES)
def test_logits_are_those_of_the_whole_model(
    kind: str, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "VOCABULARY_ROWS", 40)  # 96 rows are two blocks and a part of one
    whole, streamed = save(kind, fields, tmp_path)
    with torch.no_grad():
        expected = whole(random_ids()).logits[0]
    for _ in range(2):  # nothing of the first run is left
        _, hidden = run(streamed)
        found = streamed.logits(hidden)
        assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-6
    assert expected.std() > 0.1
    assert all(parameter.is_meta for parameter in streamed.model.parameters())


@pytest.mark.parametrize("kind", ["granite", "gemma2", "cohere2", "phi"])
def test_the_gradient_goes_through_scaling_and_softcapping(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "VOCABULARY_ROWS", 40)
    whole, streamed = save(kind, DENSE[kind], tmp_path)
    seen: list[Tensor] = []
    norm = whole.get_submodule(streamed.spine.norm)
    norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    loss = whole(random_ids(), labels=random_ids()).loss
    (expected,) = torch.autograd.grad(loss, seen)
    _, hidden = run(streamed)
    found = hidden_gradient(streamed, hidden, streamed.logits(hidden), random_ids()[0, 1:])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", MIXTURES)
def test_routers_are_found_read_and_probed(kind: str, tmp_path: Path) -> None:
    """Router gradients are those of loss.backward(), and after a step those of a layer that makes it."""
    fields, scoring, count = MIXTURES[kind]
    whole, streamed = save(kind, fields, tmp_path)
    routers, seen = find_routers(whole), list[Routing]()
    for router in routers:
        watch(router.module, seen.append)
        assert scoring_of_router(router.module) == scoring
    assert [router.layer for router in routers] == list(range(2 - count, 2))
    whole(random_ids(), labels=random_ids()).loss.backward()
    for routing in seen:
        assert routing.logits_TE.shape == (24, 4)
        assert routing.weights_TK.shape == routing.chosen_TK.shape == (24, 2)
        assert scoring_of(routing) == (None if kind == "gemma4_text" else scoring)  # its experts have scales

    calls, hidden = run(streamed)
    last = calls[-1]
    above = hidden_gradient(streamed, hidden, streamed.logits(hidden), random_ids()[0, 1:])
    found = probe_routers(streamed, calls, above)
    assert found[: 2 - count] == [None] * (2 - count)
    for gradient, router in zip(found[2 - count :], routers, strict=True):
        assert gradient is not None
        assert router.weight.grad is not None
        assert gradient.now == pytest.approx(float(router.weight.grad.norm()), rel=1e-3)

    with streamed.layer(1) as layer:
        (router,) = find_routers(layer)
        down = router.experts.get_parameter("down_proj").requires_grad_()
        gradient, _ = probe_layer(layer, last, above)
        (step,) = torch.autograd.grad(last.run(layer), down, above)
        with torch.no_grad():
            down -= LEARNING_RATE * step.sign()
        (after,) = torch.autograd.grad(last.run(layer), router.weight, above)
    assert gradient is not None
    assert gradient.after_step == pytest.approx(float(after.norm()), rel=1e-3)


def test_a_tensor_that_the_class_needs_is_missed_by_name(tmp_path: Path) -> None:
    _, streamed = save("llama", DENSE["llama"], tmp_path)
    del streamed.tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"lacks tensors .*expected model\.layers\.1\.mlp\.up_proj\.weight"):
        run(streamed)
