"""Adapter experts on real models of transformers, through peft: what they compute, and that nothing is lost on disk."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, linear, silu
from transformers import AutoModelForCausalLM

from tests.models import VARIANTS, save_dense
from upcycle.adapters import ExpertsConfig
from upcycle.adapters.config import spread_over_depth
from upcycle.adapters.load import attached, expert_layers
from upcycle.errors import InputError
from upcycle.moe import lowrank
from upcycle.moe.groups import Groups
from upcycle.moe.losses import balance_loss, z_loss

TYPES = ("lora", "bottleneck", "pesc", "ia3")
ROUTINGS = ("topk", "dense", "top1")
IDS = (torch.arange(24) * 7 % 96).view(2, 12)


@pytest.fixture(autouse=True)
def _deprecations() -> Iterator[None]:
    """peft asks transformers by names that it is giving up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama in float32."""
    return save_dense("llama", tmp_path_factory.mktemp("base") / "llama", dtype=torch.float32)


def load(directory: Path, **settings: Any) -> Any:
    """The dense model."""
    return AutoModelForCausalLM.from_pretrained(directory, **settings).eval()


def wrap(model: Any, **fields: Any) -> Any:
    """The model with four experts a layer of rank 4, and routers that decide."""
    settings = {"num_experts": 4, "rank": 4, "router_std": 0.5, "task_type": "CAUSAL_LM", **fields}
    return get_peft_model(model, ExpertsConfig(**settings)).eval()


def drawn(model: Any, std: float = 0.2) -> Any:
    """The same with every weight of the adapter drawn, so that nothing is zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    """What a model says, without gradients."""
    with torch.no_grad():
        said: Tensor = model(input_ids=ids).logits
    return said


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("expert_type", TYPES)
def test_at_the_start_the_model_is_the_base_bit_for_bit(variant: str, expert_type: str, tmp_path: Path):
    """With a base in bfloat16 as well, and with a LoRA on the attention, whose B is zero."""
    dense = save_dense(variant, tmp_path / "dense")
    for dtype in (torch.float32, torch.bfloat16):
        model = load(dense, dtype=dtype)
        expected = logits(model)
        for routing in ROUTINGS:
            wrapped = wrap(load(dense, dtype=dtype), expert_type=expert_type, routing=routing, attention_rank=2)
            assert torch.equal(logits(wrapped), expected), (dtype, routing)


@pytest.mark.parametrize("expert_type", TYPES)
@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_layer_computes_its_formula(base: Path, expert_type: str, routing: str):
    """The formulas of `upcycle.moe.adapters`, written out expert by expert with the adapted matrices formed."""
    model = drawn(wrap(load(base), expert_type=expert_type, routing=routing, num_experts=4, scaling=1.5))
    _, layer = expert_layers(model)[1]
    x_TD = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    router, own = router_of(layer), experts_of(layer)
    parts: list[Any] = [layer.ffn.gate, layer.ffn.up, layer.ffn.down]
    gate, up, down = (part.weight for part in parts)
    ffn_TD = linear(silu(linear(x_TD, gate)) * linear(x_TD, up), down)
    probabilities_TE = linear(x_TD, router.weight).softmax(-1)
    kept = {"topk": 2, "dense": 4, "top1": 1}[routing]
    chosen_TE = probabilities_TE >= probabilities_TE.topk(kept).values[:, -1:]
    weights_TE = probabilities_TE * chosen_TE
    if routing == "topk":
        weights_TE = weights_TE / weights_TE.sum(-1, keepdim=True)
    expected_TD = ffn_TD.clone()
    for e in range(4):
        if expert_type == "lora":
            formed = [w + 1.5 * getattr(own, f"{n}_B")[e] @ getattr(own, f"{n}_A")[e]
                     for n, w in (("gate", gate), ("up", up), ("down", down))]  # fmt: skip
            delta_TD = linear(silu(linear(x_TD, formed[0])) * linear(x_TD, formed[1]), formed[2]) - ffn_TD
        elif expert_type == "bottleneck":
            hidden = silu(linear(x_TD, own.gate_proj[e])) * linear(x_TD, own.up_proj[e])
            delta_TD = 1.5 * linear(hidden, own.down_proj[e])
        elif expert_type == "pesc":
            delta_TD = 1.5 * linear(gelu(linear(ffn_TD, own.down_proj[e])), own.up_proj[e])
        else:
            delta_TD = linear(own.scale[e] * silu(linear(x_TD, gate)) * linear(x_TD, up), down)
        expected_TD += weights_TE[:, e : e + 1] * delta_TD
    with torch.no_grad():
        found_TD = layer(x_TD.view(2, 20, 32)).view(40, 32)
    torch.testing.assert_close(found_TD, expected_TD, rtol=1e-5, atol=1e-5 * float(expected_TD.detach().abs().max()))


@pytest.mark.parametrize("shared_a", [False, True])
def test_gradients_are_those_of_the_formed_experts(base: Path, shared_a: bool, monkeypatch: pytest.MonkeyPatch):
    """What is computed again in the backward pass, in pieces of five tokens, against autograd on whole matrices."""
    monkeypatch.setitem(lowrank.PIECE, "cpu", 5)
    model = drawn(wrap(load(base), shared_a=shared_a))
    _, layer = expert_layers(model)[0]
    own, router = experts_of(layer), router_of(layer)
    ffn: Any = layer.ffn
    x_TD = torch.randn(23, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    upstream_TD = torch.randn(23, 32, generator=torch.Generator().manual_seed(3))

    def formed() -> Tensor:
        _, weights_TK, chosen_TK = router(x_TD)
        weights_TE = torch.zeros(23, 4).scatter(1, chosen_TK, weights_TK)
        total = torch.zeros(23, 32)
        for e in range(4):
            a = 0 if shared_a else e
            gate, up, down = (
                part.weight + 2.0 * getattr(own, f"{name}_B")[e] @ getattr(own, f"{name}_A")[a]
                for name, part in (("gate", ffn.gate), ("up", ffn.up), ("down", ffn.down))
            )
            total = total + weights_TE[:, e : e + 1] * linear(silu(linear(x_TD, gate)) * linear(x_TD, up), down)
        return total

    leaves = [x_TD, router.weight, *own.parameters()]
    found = torch.autograd.grad(layer(x_TD), leaves, upstream_TD)
    expected = torch.autograd.grad(formed(), leaves, upstream_TD)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("expert_type", TYPES)
def test_no_token_sees_a_later_one(base: Path, expert_type: str):
    """A router that looked at the whole sequence (a batch-averaged softmax, as in Lily) would fail."""
    model = drawn(wrap(load(base), expert_type=expert_type, attention_rank=2))
    before = logits(model)
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 96
    after = logits(model, changed)
    assert (after[:, -1] - before[:, -1]).abs().max() > 1e-2
    assert (after[:, :-1] - before[:, :-1]).abs().max() <= 1e-5 * before.abs().max()


def router_of(layer: Any) -> Any:
    """The router of the only adapter."""
    return layer.upcycle_router["default"]


def experts_of(layer: Any) -> Any:
    """Its experts."""
    return layer.upcycle_experts["default"]


def router_gradients(model: Any) -> list[Tensor]:
    """The gradient of every router in training, of a language-modelling loss and of the router's own."""
    model.train()
    model.zero_grad()
    said = model(input_ids=IDS).logits
    cross_entropy(said[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    return [router_of(layer).weight.grad.clone() for _, layer in expert_layers(model)]


@pytest.mark.parametrize("expert_type", TYPES)
def test_gradient_checkpointing_changes_no_gradient_of_a_router(base: Path, expert_type: str):
    """Losses kept from the first pass would be lost with use_reentrant=True, or count twice."""
    model = drawn(wrap(load(base), expert_type=expert_type, balance_coef=0.5, z_coef=0.1))
    expected = router_gradients(model)
    model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())
    for reentrant in (True, False):
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for found, gradient in zip(router_gradients(model), expected, strict=True):
            assert (found - gradient).abs().max() <= 1e-6 * gradient.abs().max(), reentrant


def test_the_routers_own_losses_have_the_gradient_of_losses_that_are_added(base: Path):
    model = drawn(wrap(load(base), balance_coef=0.0, z_coef=0.0))
    routers = [router_of(layer) for _, layer in expert_layers(model)]
    plain = router_gradients(model)
    for router in routers:
        router.balance_coef, router.z_coef = 0.5, 0.1
    found = [with_losses - without for with_losses, without in zip(router_gradients(model), plain, strict=True)]
    last = routers[-1]
    heard: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _module, inputs: heard.append(inputs[0].detach()))
    model(input_ids=IDS)
    hook.remove()
    logits_TE = linear(heard[0], last.weight)
    call = Groups(logits_TE[None], logits_TE.softmax(-1)[None], logits_TE.topk(2).indices[None])
    loss = 0.5 * balance_loss(call) + 0.1 * z_loss(call)
    (expected,) = torch.autograd.grad(loss.sum(), last.weight)
    torch.testing.assert_close(found[-1], expected, rtol=1e-4, atol=1e-6)


def test_in_evaluation_there_are_no_such_losses(base: Path):
    model = drawn(wrap(load(base), balance_coef=0.5, z_coef=0.1))
    quiet = drawn(wrap(load(base), balance_coef=0.0, z_coef=0.0))
    gradients = []
    for one in (model, quiet):
        one.eval()
        one(input_ids=IDS).logits.square().sum().backward()
        gradients.append(router_of(expert_layers(one)[0][1]).weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("expert_type", TYPES)
def test_what_is_saved_is_what_is_loaded_whichever_way(base: Path, expert_type: str, tmp_path: Path):
    model = drawn(wrap(load(base), expert_type=expert_type, num_experts=[2, 4], attention_rank=2))
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not list(tmp_path.glob("*.bin"))
    assert torch.equal(logits(PeftModel.from_pretrained(load(base), tmp_path)), expected)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path)), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)
    assert torch.equal(logits(attached(load(base), tmp_path)), expected)
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(config, ExpertsConfig)
    assert (config.expert_type, config.num_experts, config.top_k) == (expert_type, [2, 4], 2)


def test_two_adapters_one_of_them_active_or_none(base: Path, tmp_path: Path):
    dense = logits(load(base))
    said = {}
    for number, expert_type in enumerate(("lora", "bottleneck")):
        one = drawn(wrap(load(base), expert_type=expert_type), std=0.1 + 0.1 * number)
        said[expert_type] = logits(one)
        one.save_pretrained(tmp_path / expert_type)
    model = PeftModel.from_pretrained(load(base), tmp_path / "lora", adapter_name="lora")
    assert torch.equal(logits(model), said["lora"])
    model.load_adapter(tmp_path / "bottleneck", adapter_name="bottleneck")
    assert torch.equal(logits(model), said["lora"])  # loaded, not active
    model.set_adapter("bottleneck")
    assert torch.equal(logits(model), said["bottleneck"])
    with model.disable_adapter():
        assert torch.equal(logits(model), dense)
    assert torch.equal(logits(model), said["bottleneck"])
    model.set_adapter("lora")
    model.delete_adapter("bottleneck")
    assert torch.equal(logits(model), said["lora"])
    assert not [name for name, _ in model.named_parameters() if "bottleneck" in name]


def test_a_plain_model_of_transformers_takes_adapters_too(base: Path, tmp_path: Path):
    """`model.load_adapter` of transformers, which injects without peft's wrapper."""
    one = drawn(wrap(load(base)))
    one.save_pretrained(tmp_path / "a")
    model = load(base)
    dense = logits(model)
    model.load_adapter(tmp_path / "a")
    assert torch.equal(logits(model), logits(one))
    model.disable_adapters()
    assert torch.equal(logits(model), dense)
    model.enable_adapters()
    assert torch.equal(logits(model), logits(one))


@pytest.mark.parametrize("lost", ["upcycle_router", "gate_B", "upcycle_lora"])
def test_an_adapter_file_that_lost_its_router_is_not_loaded(base: Path, lost: str, tmp_path: Path):
    """X-LoRA saves an adapter without its classifier and loads it with a random one."""
    drawn(wrap(load(base), attention_rank=2)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if lost not in name}, path)
    with pytest.raises(ValueError, match=r"lacks \d+ tensors, such as"):
        PeftModel.from_pretrained(load(base), tmp_path)
    with pytest.raises(InputError, match="cannot be loaded"):
        attached(load(base), tmp_path)


def test_an_adapter_of_another_shape_is_not_loaded(base: Path, tmp_path: Path):
    drawn(wrap(load(base))).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "num_experts": [4, 8]}))
    with pytest.raises(InputError, match="cannot be loaded"):
        attached(load(base), tmp_path)


def test_only_the_adapter_is_trained(base: Path):
    model = wrap(load(base), attention_rank=2)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".upcycle_" in name for name in trained)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = []
    for _ in range(8):
        said = model(input_ids=IDS).logits
        loss = cross_entropy(said[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".upcycle_" in name for name in moved)


def test_the_router_is_computed_in_float32_in_a_model_in_bfloat16(base: Path):
    model = drawn(wrap(load(base, dtype=torch.bfloat16)))
    layer = expert_layers(model)[0][1]
    router = router_of(layer)
    x_TD = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits_TE, weights_TK, _ = router(x_TD)
    assert logits_TE.dtype == weights_TK.dtype == torch.float32
    assert torch.equal(logits_TE, linear(x_TD.float(), router.weight.float()))
    assert layer(x_TD).dtype == torch.bfloat16
    assert model(input_ids=IDS).logits.isfinite().all()


def test_experts_by_depth(base: Path):
    """MoLA's 2, 4, 6, 8: each number is that of a quarter of the layers."""
    assert spread_over_depth([2, 4, 6, 8], 8) == [2, 2, 4, 4, 6, 6, 8, 8]
    assert spread_over_depth([2, 4, 6, 8], 30).count(2) == 8  # 30 / 4 = 7.5 layers: 8, 7, 8, 7
    assert spread_over_depth([8], 3) == [8, 8, 8]
    with pytest.raises(ValueError, match="at most one number for each of 2 layers"):
        spread_over_depth([2, 4, 6, 8], 2)
    model = wrap(load(base), num_experts=[0, 3])
    ((name, layer),) = expert_layers(model)
    assert ".layers.1." in name
    assert len(router_of(layer).weight) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expert_type": "moe"}, "expert_type is moe, expected one of lora, bottleneck, pesc, ia3"),
        ({"top_k": 5}, "top_k is 5, expected 1 to the 4 experts of a layer"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"shared_a": True, "expert_type": "ia3"}, "shared_a is True, expected experts of type lora"),
        ({"num_experts": [2, 2, 2]}, "at most one number for each of 2 layers"),
        ({"ffn": {"block": "mlp", "gate": "mlp.w1", "up": "mlp.w3", "down": "mlp.w2"}}, "is no FFN with w1, w3, w2"),
    ],
)
def test_settings_that_make_no_sense(base: Path, fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        wrap(load(base), **fields)


def test_a_model_that_no_table_knows_needs_names():
    from transformers import DiffLlamaConfig, DiffLlamaForCausalLM

    config = DiffLlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DiffLlamaForCausalLM(config).eval()
    dense = logits(model)
    with pytest.raises(ValueError, match=r"found model_type 'diffllama', expected one of apertus.*ExpertsConfig\(ffn="):
        wrap(model)
    names = {"block": "mlp", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    wrapped = wrap(model, ffn=names, attention=[])
    assert torch.equal(logits(wrapped), dense)
    assert len(expert_layers(wrapped)) == 2


def test_experts_are_not_merged_into_a_dense_model(base: Path):
    with pytest.raises(NotImplementedError, match="upcycle merge"):
        wrap(load(base)).merge_and_unload()


def test_registering_twice_is_registering_once():
    import importlib

    import upcycle.adapters

    importlib.reload(upcycle.adapters)
    assert upcycle.adapters.ExpertsConfig().peft_type == "UPCYCLE"  # peft refuses a method of the same name


def test_the_start_is_keyed_by_seed_and_name(base: Path):
    """Adding an expert to another layer, or a LoRA on the attention, redraws nothing."""
    one, two = wrap(load(base), num_experts=[4, 4]), wrap(load(base), num_experts=[4, 2], attention_rank=3)
    other = wrap(load(base), num_experts=[4, 4], seed=1)
    name = "base_model.model.model.layers.0.mlp.upcycle_experts.default.gate_A"
    assert torch.equal(one.get_parameter(name), two.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


@pytest.mark.parametrize("expert_type", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_routers_stay_float32_and_gradients_near(base: Path, expert_type: str, dtype: torch.dtype):
    """As transformers' Trainer runs with bf16: the backward pass is outside of autocast."""
    fields = {"expert_type": expert_type, "attention_rank": 2, "balance_coef": 0.0, "z_coef": 0.0}
    model = drawn(wrap(load(base, dtype=dtype), **fields), std=0.05)
    expected = router_gradients(drawn(wrap(load(base), **fields), std=0.05))
    heard: list[Any] = []
    for _, layer in expert_layers(model):
        router_of(layer).register_forward_hook(lambda _module, _inputs, output: heard.append(output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.train()
        said = model(input_ids=IDS).logits
        loss = cross_entropy(said[:, :-1].flatten(0, 1).float(), IDS[:, 1:].flatten())
    loss.backward()
    assert all(logits_TE.dtype == weights_TK.dtype == torch.float32 for logits_TE, weights_TK, _ in heard)
    for (_, layer), gradient in zip(expert_layers(model), expected, strict=True):
        found = router_of(layer).weight.grad
        assert (found - gradient).norm() <= 0.2 * gradient.norm()  # bfloat16 in all products of the model


def test_the_base_comes_back_by_unload(base: Path):
    dense = load(base)
    expected = logits(dense)
    model = drawn(wrap(dense, attention_rank=2))
    assert not torch.equal(logits(model), expected)
    unloaded = model.unload()
    assert torch.equal(logits(unloaded), expected)
    assert not [name for name, _ in unloaded.named_modules() if "upcycle" in name]


def test_adapters_are_not_mixed_in_a_batch(base: Path):
    """peft would drop the names, and every row would have the active adapter."""
    model = wrap(load(base))
    with pytest.raises(ValueError, match="set_adapter chooses one"):
        model(input_ids=IDS, adapter_names=["default", "default"])
