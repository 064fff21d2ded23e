"""Adapter experts on FFNs of every form: with a gate, with gate and up in one matrix, without a gate; with biases."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu, linear

from tests.any_dense import attach, load, logits, save_model, trained_on, wrap
from tests.loras import save_lora
from tests.merging import logits_error, run_merge
from upcycle.adapters.layers import ExpertsLayer
from upcycle.adapters.load import attached, expert_layers
from upcycle.families.base import row_of

MATRICES = {"gate": 0, "up": 1, "down": 2}


def dense_ffn(model_type: str, block: Any) -> list[Any]:
    """Weights and biases of gate, up and down of an FFN, None for what it has not, read by hand."""
    names = row_of({"model_type": model_type}).modules
    of = {name: block.get_submodule(name.removeprefix("mlp.")) for name in names.linear}
    if names.gate_up is not None:
        weight = of[names.gate_up].weight
        halves: list[Any] = [(half, None) for half in (weight[: len(weight) // 2], weight[len(weight) // 2 :])]
    else:
        halves = [(of[name].weight, of[name].bias) if name else None for name in (names.gate, names.up)]
    return [*halves, (of[names.down].weight, of[names.down].bias)]


def written_out(model_type: str, kind: str, layer: ExpertsLayer, x_TD: Tensor) -> Tensor:
    """The formulas of `upcycle.moe.adapters`, expert by expert with the adapted matrices formed."""
    router: Any = layer.upcycle_router["default"]
    own: Any = layer.upcycle_experts["default"]
    ffn = layer.ffn
    parts, s = dense_ffn(model_type, ffn.block), getattr(own, "scaling", 1.0)

    def hidden(gate: Any, up: Any) -> Tensor:
        return ffn.act(linear(x_TD, *up)) if gate is None else ffn.act(linear(x_TD, *gate)) * linear(x_TD, *up)

    def expert(e: int) -> Tensor:
        if kind == "lora":
            formed = [part and (part[0] + s * getattr(own, f"{n}_B")[e] @ getattr(own, f"{n}_A")[e], part[1])
                      for n, part in zip(MATRICES, parts, strict=True)]  # fmt: skip
            return linear(hidden(formed[0], formed[1]), *formed[2]) - dense_TD
        if kind == "bottleneck":
            gate = None if own.gate_proj is None else (own.gate_proj[e],)
            return s * linear(hidden(gate, (own.up_proj[e],)), own.down_proj[e])
        if kind == "pesc":
            return s * linear(gelu(linear(dense_TD, own.down_proj[e])), own.up_proj[e])
        return linear(own.scale[e] * hidden(parts[0], parts[1]), parts[2][0])

    dense_TD = linear(hidden(parts[0], parts[1]), *parts[2])
    probabilities_TE = linear(x_TD, router.weight).softmax(-1)
    weights_TE = probabilities_TE * (probabilities_TE >= probabilities_TE.topk(2).values[:, -1:])
    weights_TE = weights_TE / weights_TE.sum(-1, keepdim=True)
    return dense_TD + sum(weights_TE[:, e : e + 1] * expert(e) for e in range(4))


@pytest.mark.parametrize("kind", ["lora", "bottleneck", "pesc", "ia3"])
@pytest.mark.parametrize("model_type", ["arcee", "glm4", "granite"])  # ungated, fused, gated; two with biases
def test_a_layer_and_its_gradients_are_those_of_the_formula(model_type: str, kind: str, tmp_path: Path) -> None:
    model = wrap(load(save_model(model_type, tmp_path)), expert_type=kind, scaling=None if kind == "ia3" else 1.5)
    _, layer = expert_layers(model)[1]
    generator = torch.Generator().manual_seed(1)
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data.normal_(std=0.2, generator=generator)
    x_TD, upstream_TD = (torch.randn(300, 32, generator=generator) for _ in range(2))  # more than one piece
    x_TD.requires_grad_()
    found_TD, expected_TD = layer(x_TD.view(2, 150, 32)).view(300, 32), written_out(model_type, kind, layer, x_TD)
    torch.testing.assert_close(found_TD, expected_TD, rtol=1e-5, atol=1e-5 * float(expected_TD.detach().abs().max()))
    found = torch.autograd.grad(found_TD, [x_TD, *trained], upstream_TD)
    expected = torch.autograd.grad(expected_TD, [x_TD, *trained], upstream_TD)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=3e-4 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["apertus", "glm", "phi", "stablelm"])
def test_long_inputs_start_as_the_base_too(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """More tokens than a piece has, and rows whose length is no multiple of a vector register's."""
    base = save_model(model_type, tmp_path, intermediate_size=51)
    models = [load(base).to(dtype), wrap(load(base).to(dtype)).eval()]
    ids = torch.arange(300)[None] % 128
    with torch.no_grad():
        dense, wrapped = (model(input_ids=ids, position_ids=ids).logits for model in models)
    assert torch.equal(wrapped, dense)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
@pytest.mark.parametrize("model_type", ["starcoder2", "seed_oss", "gptj"])
def test_in_training_the_dropout_of_the_ffn_stays(model_type: str, kind: str, tmp_path: Path) -> None:
    base = save_model(model_type, tmp_path, **({"resid_pdrop": 0.3} if model_type == "gptj" else {}))
    _, layer = expert_layers(wrap(load(base), expert_type=kind))[0]
    x = torch.randn(2, 5, 32)
    said = []
    for module in (layer, layer.base_layer):
        module.train()
        torch.manual_seed(3)
        said.append(module(x))
    assert torch.equal(*said)
    assert (said[0] == 0).any()


# LoRAs as experts, and the control


@pytest.mark.parametrize("model_type", ["glm", "phi"])
def test_one_lora_alone_computes_what_peft_makes_of_it(model_type: str, tmp_path: Path) -> None:
    """A LoRA of a fused matrix becomes one of the gate and one of up, which share their A."""
    base = save_model(model_type, tmp_path / "base")
    linear_layers = [name.rpartition(".")[2] for name in row_of({"model_type": model_type}).modules.linear]
    loras = [save_lora(base, tmp_path / name, target_modules=linear_layers, lora_alpha=12) for name in ("one", "other")]
    both = attach(base, tmp_path / "both", "lora", from_lora=tuple(map(str, loras)))
    rows_ED = next(value for name, value in load_file(both / "adapter_model.safetensors").items() if "router" in name)
    torch.testing.assert_close(rows_ED.norm(dim=1), torch.ones(2))
    twice = attach(base, tmp_path / "twice", "lora", from_lora=(str(loras[0]),) * 2, router="zeros")
    expected, found = logits(attached(load(base), loras[0]).eval()), logits(attached(load(base), twice).eval())
    assert (expected - logits(load(base))).abs().max() > 0.1
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("model_type", ["gpt_bigcode", "glm", "falcon"])
def test_the_control_is_of_the_same_linear_layers(model_type: str, tmp_path: Path) -> None:
    """GPT-BigCode calls a layer of its attention as it calls one of its FFN, `c_proj`."""
    base, names = save_model(model_type, tmp_path / "base"), row_of({"model_type": model_type}).modules
    control = attach(base, tmp_path / "control", "lora", baseline="single-lora")
    model = attached(load(base), control).eval()
    assert torch.equal(logits(model), logits(load(base)))
    adapted = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert {name.rpartition(".mlp.")[2] for name in adapted} == {name.removeprefix("mlp.") for name in names.linear}


# A fused model that has a mixture


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_what_is_attached_to_a_fused_model_is_merged(kind: str, text: Path, tmp_path: Path) -> None:
    """Phi-3 to Mixtral: the update of the fused attention is divided among queries, keys and values."""
    base = save_model("phi3", tmp_path / "base", pad_token_id=0)
    adapter = attach(base, tmp_path / "adapter", kind, attention_rank=2)
    trained = trained_on(text, adapter, tmp_path / "trained")
    run_merge(trained, base, tmp_path / "out")
    assert not torch.equal(logits(attached(load(base), trained).eval()), logits(load(base)))
    assert logits_error(attached(load(base), trained), tmp_path / "out") <= 1e-5
