"""Routers in float32 inside bfloat16 models of transformers, small but real."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.glm4_moe import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.models.gpt_oss import GptOssConfig, GptOssForCausalLM
from transformers.models.granitemoe import GraniteMoeConfig, GraniteMoeForCausalLM
from transformers.models.lfm2_moe import Lfm2MoeConfig, Lfm2MoeForCausalLM
from transformers.models.mixtral import MixtralConfig, MixtralForCausalLM
from transformers.models.qwen3_moe import Qwen3MoeConfig, Qwen3MoeForCausalLM

from upcycle.errors import UnsupportedError
from upcycle.moe.routing import find_routers
from upcycle.train.precision import keep_routers_fp32, state_for_saving

COMMON: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "num_experts_per_tok": 2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 4, "tie_word_embeddings": True}),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {"num_experts": 4, "moe_intermediate_size": 48}),
    "granitemoe": (GraniteMoeConfig, GraniteMoeForCausalLM, {"num_local_experts": 4}),
    "glm4_moe": (
        Glm4MoeConfig,
        Glm4MoeForCausalLM,
        {"n_routed_experts": 4, "moe_intermediate_size": 48, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1},
    ),
    "gpt_oss": (GptOssConfig, GptOssForCausalLM, {"num_local_experts": 4, "sliding_window": 8}),
    "lfm2_moe": (
        Lfm2MoeConfig,
        Lfm2MoeForCausalLM,
        {
            "num_experts": 4,
            "moe_intermediate_size": 48,
            "num_dense_layers": 0,
            "layer_types": ["full_attention", "conv"],
        },
    ),
}
FP32_ALREADY = ("glm4_moe",)
"""Families whose router computes in float32 whatever its weights are."""

BIASES = {"lfm2_moe": (torch.zeros(4),)}
"""What else a family gives its router."""

IDS = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(5))


def stock(family: str, experts: str = "eager") -> Any:
    """A random model in bfloat16 whose routers decide: their logits vary by about one."""
    config_class, model_class, fields = FAMILIES[family]
    torch.manual_seed(3)
    model = model_class(config_class(**{**COMMON, **fields}))
    for router in find_routers(model):
        nn.init.normal_(next(router.module.parameters()), std=0.3)
    model.set_experts_implementation(experts)
    return model.to(torch.bfloat16).train()


def widened(family: str, experts: str = "eager") -> Any:
    model = stock(family, experts)
    keep_routers_fp32(router.module for router in find_routers(model))
    return model


def outputs_of_routers(model: Any) -> list[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]]:
    """Run the model; return what each router was given (before it is cast) and gave."""
    seen: list[Any] = []
    handles = []
    for router in find_routers(model):
        handles.append(
            router.module.register_forward_pre_hook(lambda _module, args: seen.append([args[0]]), prepend=True)
        )
        handles.append(router.module.register_forward_hook(lambda _module, _args, output: seen[-1].append(output)))
    model(IDS)
    for handle in handles:
        handle.remove()
    return [(hidden.reshape(-1, hidden.shape[-1]), output) for hidden, output in seen]


every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_router_logits_are_those_of_float32(family: str, experts: str) -> None:
    model = widened(family, experts)
    routers = [router.module for router in find_routers(model)]
    seen = outputs_of_routers(model)
    assert len(seen) == len(routers) == 2
    for module, (hidden_TD, (logits_TE, _, chosen_TK)) in zip(routers, seen, strict=True):
        assert hidden_TD.dtype == torch.bfloat16
        weight, bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, Tensor)
        assert logits_TE.dtype == torch.float32
        assert torch.equal(logits_TE, nn.functional.linear(hidden_TD.float(), weight.float(), bias))
        assert torch.equal(chosen_TK.sort().values, logits_TE.topk(2).indices.sort().values)


@every_family
def test_the_stock_router_loses_digits(family: str) -> None:
    """The trap that this is for: logits rounded to bfloat16, except where the family has thought of it."""
    model = stock(family)
    for router, (hidden_TD, (logits_TE, *_)) in zip(find_routers(model), outputs_of_routers(model), strict=True):
        module: Any = router.module
        exact_TE = copy.deepcopy(module).float()(hidden_TD.float(), *BIASES.get(family, ()))[0]
        assert torch.equal(logits_TE.float(), exact_TE) == (family in FP32_ALREADY)


@every_family
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_forward_and_backward(family: str, experts: str) -> None:
    model = widened(family, experts)
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    assert loss.isfinite()
    for router in find_routers(model):
        weight = next(router.module.parameters())
        assert weight.grad is not None
        assert weight.grad.dtype == torch.float32
        assert weight.grad.norm() > 0
    assert all(p.grad is None or p.grad.dtype == p.dtype for p in model.parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_family
def test_nothing_but_routers_is_changed(family: str) -> None:
    before, model = stock(family), stock(family)
    same = dict(model.named_parameters())
    keep_routers_fp32(router.module for router in find_routers(model))
    names = {router.name for router in find_routers(model)}
    for name, parameter in model.named_parameters():
        assert parameter is same[name]  # an optimizer made earlier would still hold it
        inside = name.rpartition(".")[0] in names
        assert parameter.dtype == (torch.float32 if inside else torch.bfloat16)
        assert torch.equal(parameter, before.get_parameter(name))


@every_family
def test_combine_weights_have_the_type_of_the_stock_router(family: str) -> None:
    for (_, (_, stock_TK, _)), (_, (_, weights_TK, _)) in zip(
        outputs_of_routers(stock(family)), outputs_of_routers(widened(family)), strict=True
    ):
        assert weights_TK.dtype == stock_TK.dtype


@pytest.mark.parametrize("family", FP32_ALREADY)
def test_a_model_that_had_float32_routers_computes_the_same(family: str) -> None:
    assert torch.equal(widened(family)(IDS).logits, stock(family)(IDS).logits)


@every_family
def test_logits_are_nearer_to_those_of_a_float32_model(family: str) -> None:
    """Of the first router, which sees the same hidden states in all three but for the rounding of the layers before."""
    exact = outputs_of_routers(stock(family).float())[0][1][0]
    errors = [(outputs_of_routers(model)[0][1][0].float() - exact).norm() for model in (stock(family), widened(family))]
    assert errors[1] <= errors[0]


def test_recorded_router_logits_are_float32() -> None:
    logits = widened("mixtral")(IDS, output_router_logits=True).router_logits
    assert [layer.dtype for layer in logits] == [torch.float32] * 2
    logits[0].square().mean().backward()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradient_checkpointing_computes_the_same() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = widened("qwen3_moe")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_a_second_call_changes_nothing() -> None:
    model = widened("mixtral")
    keep_routers_fp32(router.module for router in find_routers(model))
    router = find_routers(model)[0].module
    assert len(router._forward_pre_hooks) == 1
    assert state_for_saving(model)["model.layers.0.mlp.gate.weight"].dtype == torch.bfloat16


def test_a_float32_model_is_left_alone() -> None:
    model = stock("mixtral").float()
    keep_routers_fp32(router.module for router in find_routers(model))
    assert not any(router.module._forward_hooks for router in find_routers(model))
    assert {tensor.dtype for tensor in state_for_saving(model).values()} == {torch.float32}


@pytest.mark.parametrize("module", [nn.Linear(8, 4), nn.LayerNorm(8)])
def test_other_modules_are_refused(module: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match="no stock router"):
        keep_routers_fp32([module.to(torch.bfloat16)])
    assert next(module.parameters()).dtype == torch.bfloat16


# -- saving -----------------------------------------------------------------------------------------------------------


@every_family
def test_what_is_saved_is_an_ordinary_checkpoint(family: str, tmp_path: Path) -> None:
    model = widened(family)
    with torch.no_grad():
        for router in find_routers(model):
            next(router.module.parameters()).add_(1e-5)  # digits that bfloat16 has not
    model.save_pretrained(tmp_path, state_dict=state_for_saving(model))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).to(torch.bfloat16)), name
    assert {p.dtype for router in find_routers(model) for p in router.module.parameters()} == {torch.float32}


def test_a_copy_is_saved_alike() -> None:
    """peft copies the modules that it saves whole."""
    model = copy.deepcopy(widened("qwen3_moe"))
    assert {tensor.dtype for tensor in state_for_saving(model).values()} == {torch.bfloat16}
    assert outputs_of_routers(model)[0][1][0].dtype == torch.float32


# -- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Dynamo detected")
def test_a_compiled_model_computes_the_same() -> None:
    model = widened("qwen3_moe", "grouped_mm")
    expected = model(IDS).logits
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(IDS).logits, expected)
