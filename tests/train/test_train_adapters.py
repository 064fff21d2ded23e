"""Training adapters on a frozen model: adapter experts of every kind, and the plain LoRA that is their control."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import upcycle.adapters
from tests.training import SMALL, lines, losses, told
from upcycle.adapters import ExpertsConfig
from upcycle.adapters.load import attached
from upcycle.checkpoint.reader import TOKENIZER_FILES, present_files
from upcycle.errors import InputError
from upcycle.moe.adapters import AdapterRouter
from upcycle.moe.routing import Recorder, find_routers
from upcycle.pipeline.locate import BUILT_IN
from upcycle.requests import Generate, Train
from upcycle.train.loop import train
from upcycle.train.model import check_four_bits
from upcycle.train.optimizer import Optimizer
from upcycle.use.generate import generate

BASE = BUILT_IN["demo:tiny"]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Silent:
    """Watches and says nothing."""

    def begin(self, total_steps: int, done: int) -> None: ...

    def step(self, metrics: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


def save_adapter(directory: Path, config: Any) -> Path:
    """Save a fresh adapter of the built-in model, with its tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    with warnings.catch_warnings():  # peft asks transformers by a name that it is giving up
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(model, config).save_pretrained(directory)
    said = json.loads((directory / CONFIG).read_text()) | {"base_model_name_or_path": str(BASE), "revision": "abc"}
    if said["peft_type"] == "UPCYCLE":
        said["base_fingerprint"] = "0123"
    (directory / CONFIG).write_text(json.dumps(said))
    (directory / "README.md").unlink()
    for path in present_files(BASE, TOKENIZER_FILES):
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


def experts(directory: Path, **fields: Any) -> Path:
    settings = {"num_experts": 4, "top_k": 2, "rank": 4, "task_type": "CAUSAL_LM", **fields}
    return save_adapter(directory, ExpertsConfig(**settings))


def run(adapter: Path, out: Path, text: Path, **fields: Any) -> Path:
    settings = {**SMALL, "seq_len": 32, "batch_size": 2, "lr": 3e-3, **fields}
    request = Train(model=str(adapter), out=str(out), data=(str(text),), **settings)
    train(adapter, request, Silent(), base=BASE)
    return out


def moved(before: Path, after: Path) -> set[str]:
    """The kinds of tensors that are not what they were."""
    old, new = load_file(before / WEIGHTS), load_file(after / WEIGHTS)
    assert old.keys() == new.keys()
    assert {tensor.dtype for tensor in new.values()} == {torch.float32}
    kinds = {"upcycle_router": "router", "upcycle_experts": "experts"}
    return {
        next((kind for part, kind in kinds.items() if part in name), "rest")
        for name in old
        if not torch.equal(old[name], new[name])
    }


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapter experts in numbers that grow with the depth, and a LoRA on the attention."""
    return experts(tmp_path_factory.mktemp("fresh") / "adapter", num_experts=[2, 4], attention_rank=2)


@pytest.fixture(scope="module")
def trained(fresh: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps of it."""
    return run(
        fresh,
        tmp_path_factory.mktemp("trained") / "out",
        text,
        seq_len=64,
        batch_size=4,
        save_every=5,
        eval_every=5,
        eval_split=0.1,
    )


# -- what is trained ---------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_only_the_adapter_changes(fresh: Path, trained: Path) -> None:
    assert losses(trained)[-1] < losses(trained)[0] - 0.3
    assert moved(fresh, trained) == {"router", "experts", "rest"}
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model(ids).logits
        adapted = attached(model, trained)
        assert not torch.allclose(adapted(ids).logits, expected, atol=0.1)
        with adapted.disable_adapter():
            assert torch.equal(adapted(ids).logits, expected)


def test_the_output_is_an_adapter_directory_of_the_same_base(fresh: Path, trained: Path) -> None:
    for directory in (trained, trained / "checkpoint-000005", trained / "checkpoint-000010"):
        assert (directory / CONFIG).read_bytes() == (fresh / CONFIG).read_bytes()
        for name in (path.name for path in present_files(fresh, TOKENIZER_FILES)):
            assert (directory / name).read_bytes() == (fresh / name).read_bytes()
        assert not list(directory.glob("README.md")) + list(directory.glob("config.json"))
    assert AutoTokenizer.from_pretrained(trained)("Thus")["input_ids"]


def test_every_layer_is_told_with_its_experts(trained: Path) -> None:
    counts = [len(layer["load"]) for layer in lines(trained)[-1]["layers"]]
    assert set(counts) == {2, 4}
    assert counts == sorted(counts)
    assert all("cosine" not in layer for line in lines(trained) for layer in line["layers"])
    # The layers of two experts use both of them: nothing to be told of that.
    assert all(
        layer["load"] == [0.5, 0.5] for line in lines(trained) for layer in line["layers"] if len(layer["load"]) == 2
    )
    assert all(not line.get("alerts") for line in lines(trained))


@pytest.mark.parametrize("kind", ["router", "experts"])
def test_parts_of_an_adapter(trained: Path, text: Path, tmp_path: Path, kind: str) -> None:
    out = run(trained / "checkpoint-000005", tmp_path / "out", text, train=kind, max_steps=3, warmup_steps=0)
    assert moved(trained / "checkpoint-000005", out) == {kind}


@pytest.mark.parametrize(
    "fields",
    [
        {"expert_type": "bottleneck", "routing": "top1"},
        {"expert_type": "pesc", "routing": "dense"},
        {"expert_type": "ia3"},
        {"shared_a": True, "num_experts": [3, 0, 2]},
    ],
    ids=lambda fields: fields.get("expert_type", "ragged"),
)
def test_every_kind_of_experts(text: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    adapter = experts(tmp_path / "adapter", **fields)
    out = run(adapter, tmp_path / "out", text, max_steps=6, warmup_steps=0, eval_split=0.1, eval_sequences=8)
    assert moved(adapter, out) == {"router", "experts"}
    assert told(out)[-1]["eval_loss"] < told(out)[0]["eval_loss"] - 0.005
    if fields.get("routing") == "dense":
        assert all(set(layer["load"]) == {0.25} for layer in lines(out)[-1]["layers"])


def test_a_plain_lora_is_trained_alike(text: Path, tmp_path: Path) -> None:
    targets = ["gate_proj", "up_proj", "down_proj"]
    lora = save_adapter(tmp_path / "lora", LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    out = run(lora, tmp_path / "out", text, save_every=5)
    assert losses(out)[-1] < losses(out)[0] - 0.3
    assert moved(lora, out) == {"rest"}
    assert lines(out)[-1]["layers"] == []
    before = told(out), (out / WEIGHTS).read_bytes()
    shutil.rmtree(out / "checkpoint-000010")  # as if it had been stopped
    run(lora, out, text, save_every=5, resume=True)
    assert (told(out), (out / WEIGHTS).read_bytes()) == before
    with pytest.raises(InputError, match="has no experts"):
        run(lora, tmp_path / "none", text, train="router")


# -- the same numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_resumed_is_uninterrupted(fresh: Path, text: Path, tmp_path: Path, dtype: str) -> None:
    fields: dict[str, Any] = {"dtype": dtype, "max_steps": 4, "schedule": "constant", "warmup_steps": 1}
    whole = run(fresh, tmp_path / "whole", text, **fields)
    run(fresh, tmp_path / "parts", text, **{**fields, "max_steps": 2})
    parts = run(fresh, tmp_path / "parts", text, **fields, resume=True)
    assert told(parts) == told(whole)
    assert (parts / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_accumulation_and_checkpointing_change_no_step(trained: Path, text: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"max_steps": 2, "warmup_steps": 0, "balance_coef": 0.1}
    plain, again, cut = (
        run(trained / "checkpoint-000005", tmp_path / name, text, **fields, **more)
        for name, more in (
            ("plain", {}), ("again", {"gradient_checkpointing": True}), ("cut", {"batch_size": 1, "grad_accum": 2})
        )
    )  # fmt: skip
    for other in (again, cut):
        assert losses(other) == pytest.approx(losses(plain), abs=2e-5)
        for one, two in zip(lines(plain), lines(other), strict=True):
            assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


def test_global_batch_load_of_ragged_layers(fresh: Path, text: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"max_steps": 2, "warmup_steps": 0, "balance_scope": "global-batch", "balance_coef": 0.1}
    whole = run(fresh, tmp_path / "whole", text, **fields)
    parts = run(fresh, tmp_path / "parts", text, batch_size=1, grad_accum=2, **fields)
    for one, two in zip(lines(whole), lines(parts), strict=True):
        assert two["balance_loss"] == pytest.approx(one["balance_loss"], abs=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


def test_the_routers_own_losses_are_off(text: Path, tmp_path: Path) -> None:
    """A run whose objective has no losses is the same for adapters whose config has them and for one whose has none."""
    fields = {"max_steps": 2, "warmup_steps": 0, "balance_coef": 0.0, "z_coef": 0.0}
    outs = [
        run(experts(tmp_path / f"a{coef}", balance_coef=coef, z_coef=coef), tmp_path / f"o{coef}", text, **fields)
        for coef in (0.0, 1.0)
    ]
    assert losses(outs[0]) == losses(outs[1])
    assert (outs[0] / WEIGHTS).read_bytes() == (outs[1] / WEIGHTS).read_bytes()


def test_vectors_of_experts_do_not_decay() -> None:
    """They are differences from one, stacked `(E, F)`: no matrices, though they look alike."""
    scale, matrix = (nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    named = {"mlp.upcycle_experts.default.scale": scale, "mlp.upcycle_experts.default.gate_A": matrix}
    optimizer = Optimizer({"experts": named}, lr={"experts": 0.1}, weight_decay=0.5)
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0)
    assert torch.equal(scale, torch.ones(2, 3))
    assert torch.allclose(matrix, torch.full((2, 3), 1 - 0.1 * 0.5))


# -- around it ---------------------------------------------------------------------------------------------------------


def test_the_active_adapters_routers_are_found(trained: Path, fresh: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE)
    assert find_routers(model) == []
    adapted = attached(model, fresh)
    adapted.load_adapter(str(trained), "second")
    for name in ("default", "second"):
        adapted.set_adapter(name)
        routers = find_routers(adapted.get_base_model())
        assert [router.layer for router in routers] == list(range(model.config.num_hidden_layers))
        assert all(router.name.endswith(f"mlp.upcycle_router.{name}") for router in routers)
        assert all(router.experts_name.endswith(f"mlp.upcycle_experts.{name}") for router in routers)
        assert all(isinstance(router.module, AdapterRouter) for router in routers)
        recorder = Recorder(routers)
        with recorder.recording() as seen:
            adapted(torch.arange(8)[None])
        recorder.remove()
        assert [one.logits_TE.shape[-1] for one in seen] == [
            len(router.module.get_parameter("weight")) for router in routers
        ]
    with adapted.disable_adapter():
        assert find_routers(adapted.get_base_model()) == []


def test_generating_with_an_adapter(trained: Path) -> None:
    prompt = "import argparse"
    written = generate(
        trained, Generate(model=str(trained), prompt=prompt, max_new_tokens=12), lambda _: None, base=BASE
    )
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = attached(AutoModelForCausalLM.from_pretrained(BASE), trained)
    with torch.no_grad():
        ids = model.generate(
            **tokenizer(prompt, return_tensors="pt", return_token_type_ids=False), max_new_tokens=12, do_sample=False
        )
    assert written == tokenizer.decode(ids[0], skip_special_tokens=True)


def test_an_adapter_without_a_tokenizer_has_its_bases(fresh: Path, text: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in (CONFIG, WEIGHTS):
        (bare / name).write_bytes((fresh / name).read_bytes())
    out = run(bare, tmp_path / "out", text, max_steps=1)
    assert present_files(out, TOKENIZER_FILES)
    generate(bare, Generate(model=str(bare), prompt="a", max_new_tokens=2), lambda _: None, base=BASE)


def test_what_cannot_be_trained_is_refused(fresh: Path, trained: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an adapter already; found --train lora, expected all, experts or router"):
        run(fresh, tmp_path / "out", text, train="lora")
    with pytest.raises(InputError, match="OUT and MODEL overlap"):
        run(fresh, BASE / "out", text)
    with pytest.raises(InputError, match="the training run there is another one"):
        run(trained / "checkpoint-000005", _copied(trained, tmp_path / "copy"), text, resume=True)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_lost_its_router_is_refused(fresh: Path, text: Path, tmp_path: Path) -> None:
    lost = _copied(fresh, tmp_path / "lost")
    kept = {name: value for name, value in load_file(lost / WEIGHTS).items() if "upcycle_router" not in name}
    save_file(kept, lost / WEIGHTS)
    with pytest.raises(InputError, match=r"this adapter cannot be loaded .*upcycle_router"):
        run(lost, tmp_path / "out", text)
    assert not (tmp_path / "out").exists()


class Linear4bit(nn.Linear):
    """What bitsandbytes' class looks like from outside."""


class Held(nn.Module):
    """A model of four linear layers, one of them the head."""

    def __init__(self, *kinds: type[nn.Linear]) -> None:
        super().__init__()
        self.linear = nn.ModuleList(kind(2, 2) for kind in kinds)
        self.head = nn.Linear(2, 2)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def test_layers_that_are_not_held_in_4_bits_are_named() -> None:
    check_four_bits(Held(Linear4bit, Linear4bit, Linear4bit), BASE)
    with pytest.raises(InputError, match=r"found 2, without linear\.1, expected 3, all but the head; leave"):
        check_four_bits(Held(Linear4bit, nn.Linear, Linear4bit), BASE)
    with pytest.raises(InputError, match="not all linear layers could be held in 4 bits; found none"):
        check_four_bits(Held(), BASE)


def test_4_bits_below_an_adapter(fresh: Path, text: Path, tmp_path: Path) -> None:
    out = run(fresh, tmp_path / "out", text, load_in_4bit=True, dtype="bf16")
    assert losses(out)[-1] < losses(out)[0] - 0.2
    assert moved(fresh, out) == {"router", "experts", "rest"}


def _copied(directory: Path, to: Path) -> Path:
    return Path(shutil.copytree(directory, to))


assert upcycle.adapters  # registers the method with peft
