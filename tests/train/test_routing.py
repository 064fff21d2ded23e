"""Routers of stock models, found and read whatever family they are of."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from upcycle.errors import UnsupportedError
from upcycle.moe.routing import (
    SCORES,
    Recorder,
    Routing,
    find_routers,
    scoring_of,
    scoring_of_router,
    sigmoid_scores,
    softmax_scores,
)

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip

FAMILIES: dict[str, tuple[dict[str, Any], str, int]] = {
    "mixtral": ({"num_local_experts": 4}, "softmax", 2),
    "qwen2_moe": ({**QWEN, "shared_expert_intermediate_size": 32}, "softmax", 2),
    "qwen3_moe": ({**QWEN, "head_dim": 8}, "softmax", 2),
    "olmoe": ({"num_experts": 4, "num_experts_per_tok": 2}, "softmax", 2),
    "flex_olmo": ({"num_experts": 4, "num_experts_per_tok": 2}, "softmax", 2),
    "granitemoe": ({"num_local_experts": 4, "num_experts_per_tok": 2}, "softmax", 2),
    "gpt_oss": ({"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}, "softmax", 2),
    "hunyuan_v1_moe": ({"num_experts": 4, "moe_topk": 2, "head_dim": 8}, "softmax", 2),
    "ernie4_5_moe": ({"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32}, "softmax", 1),
    "glm4_moe": ({**DEEPSEEK, "head_dim": 8}, "sigmoid", 1),
    "hy_v3": ({**QWEN, "head_dim": 8, "mlp_layer_types": ["dense", "sparse"]}, "sigmoid", 1),
}
"""Model type -> its config besides SMALL, how its routers score, how many it has."""


def small_model(kind: str) -> Any:
    """A model with weights so wide that softmax and sigmoid differ."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **FAMILIES[kind][0]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_router_is_found_and_its_scoring_told(kind: str) -> None:
    _, scoring, count = FAMILIES[kind]
    model = small_model(kind)
    recorder = Recorder(find_routers(model))
    with recorder.recording() as seen:
        model(input_ids=torch.arange(32).view(2, 16))
    assert len(recorder.routers) == len(seen) == count
    assert [router.layer for router in recorder.routers] == list(range(2 - count, 2))  # some begin with dense layers
    weight = next(recorder.routers[0].module.parameters()).clone()
    assert scoring_of_router(recorder.routers[0].module) == scoring
    assert torch.equal(weight, next(recorder.routers[0].module.parameters()))
    for routing in seen:
        assert routing.logits_TE.shape == (32, 4)
        assert routing.chosen_TK.shape == routing.weights_TK.shape == (32, 2)
        assert scoring_of(routing) == scoring


@pytest.mark.parametrize("kind", ["mixtral", "glm4_moe"])
def test_recorded_logits_have_the_routers_gradient(kind: str) -> None:
    model = small_model(kind)
    routers = find_routers(model)
    recorder = Recorder(routers)
    with recorder.recording() as seen:
        model(input_ids=torch.arange(16)[None])
    torch.stack([routing.logits_TE.square().sum() for routing in seen]).sum().backward()
    assert all(router.module.get_parameter("weight").grad is not None for router in routers)


def test_gradient_checkpointing_records_each_layer_once() -> None:
    model = small_model("mixtral")
    enable = getattr(
        model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
    )  # 5.17 has the latter
    enable({"use_reentrant": False})
    model.train()
    recorder = Recorder(find_routers(model))
    with recorder.recording() as seen:
        loss = model(input_ids=torch.arange(16)[None], use_cache=False).logits.square().mean()
    loss.backward()  # runs the layers again
    assert len(seen) == 2


def test_nothing_is_kept_outside_a_recording() -> None:
    model = small_model("mixtral")
    recorder = Recorder(find_routers(model))
    model(input_ids=torch.arange(16)[None])
    assert recorder.seen == []


def test_a_dense_model_has_no_routers() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL))
    assert find_routers(model) == []


def test_a_block_without_a_known_router_is_refused() -> None:
    block = nn.Module()
    block.experts = nn.Linear(2, 2)
    block.chooser = nn.Linear(2, 2)
    with pytest.raises(
        UnsupportedError, match=r"cannot find the router beside `experts`.*found 0 candidates, expected one module"
    ):
        find_routers(block)


def test_scores_that_do_not_tell_are_left_open() -> None:
    logits = torch.zeros(3, 4)  # all zero: softmax and sigmoid give the same proportions
    chosen = torch.tensor([[0, 1]] * 3)
    assert scoring_of(Routing(logits, torch.full((3, 2), 0.5), chosen)) is None
    assert scoring_of(Routing(torch.randn(3, 4), torch.ones(3, 1), chosen[:, :1])) is None


def test_scores_by_hand() -> None:
    logits = torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])
    # softmax: 1/(1+3), 3/(1+3). sigmoid: 1/2 and 3/4, which make 5/4: .4 and .6.
    assert softmax_scores(logits)[0].tolist() == pytest.approx([0.25, 0.75])
    assert sigmoid_scores(logits)[0].tolist() == pytest.approx([0.4, 0.6])
    assert set(SCORES) == {"softmax", "sigmoid"}
