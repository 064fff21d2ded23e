"""LoRAs as experts: each computes what the LoRA merged by peft computes, and what cannot be an expert is refused."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.loras import FFN, configure, load, merged, replace_tensors, save_lora, tensors_of
from tests.models import SMALL, save_dense
from upcycle.adapt.compose import Composed, compose
from upcycle.adapt.lora_files import Lora, read_lora
from upcycle.adapt.prototypes import prototypes
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import InputError, UpcycleError
from upcycle.families.base import AdapterBase, adapter_base
from upcycle.moe.adapters import Ffn, LoraExperts
from upcycle.requests.attach import AttentionDeltas

PREFIX = "base_model.model."
IDS = torch.arange(40).view(2, 20) * 7 % 96
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
D, F, L = SMALL["hidden_size"], SMALL["intermediate_size"], SMALL["num_hidden_layers"]
REGULAR = "model.layers.1.mlp.(up|down)_proj"

LORAS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 16},
    "wide": {"r": 12, "lora_alpha": 6},
    "stabilised": {"r": 6, "lora_alpha": 5, "use_rslora": True},
    "patterns": {
        "r": 4, "lora_alpha": 8,
        "rank_pattern": {"up_proj": 2, "model.layers.1.mlp.down_proj": 7}, "alpha_pattern": {REGULAR: 31},
    },
    "two_of_three": {"r": 3, "target_modules": ["up_proj", "down_proj"]},
    "one_layer": {"r": 3, "layers_to_transform": [1]},
    "gaussian": {"r": 2, "init_lora_weights": "gaussian"},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def loras(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("loras")
    made = {name: save_lora(base, place / name, **fields) for name, fields in LORAS.items()}
    made["half"] = save_lora(base, place / "half", dtype=torch.bfloat16)
    made["both"] = save_lora(base, place / "both", target_modules=["up_proj", "q_proj", "o_proj"], r=5)
    made["all"] = save_lora(base, place / "all", target_modules="all-linear", r=3)
    made["attention"] = save_lora(base, place / "attention", target_modules=["q_proj", "v_proj"])
    return made


@pytest.fixture
def lora(base: Path, tmp_path: Path) -> Path:
    """One to be damaged."""
    return save_lora(base, tmp_path / "damaged")


def composed(model: Path, *places: Path, **how: Any) -> Composed:
    return compose([read_lora(place) for place in places], matched(model), **how)


def matched(model: Path) -> AdapterBase:
    return adapter_base(open_checkpoint(model))


class OneExpert(nn.Module):
    """An FFN of which every token chooses the same expert."""

    def __init__(self, mlp: Any, made: Composed, tensors: dict[str, Tensor], number: int) -> None:
        super().__init__()
        self.number = number
        self.ffn = Ffn(mlp, mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn)
        shared = len(tensors["gate_A"]) != made.experts
        self.experts = LoraExperts(made.experts, D, F, made.rank, scaling=1.0, shared_a=shared)
        self.experts.load_state_dict(tensors)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[0] * x.shape[1]
        chosen_TK = torch.full((tokens, 1), self.number)
        output: Tensor = self.experts(x, torch.ones(tokens, 1, dtype=x.dtype), chosen_TK, self.ffn)
        return output


@torch.no_grad()
def with_expert(base: Path, made: Composed, number: int) -> Any:
    """Return the model in which every token uses one expert."""
    model = load(base)
    for name, a in made.tensors.items():
        if name.endswith(".upcycle_lora.lora_A"):
            b = made.tensors[name[:-1] + "B"]
            model.get_submodule(name.removeprefix(PREFIX).removesuffix(".upcycle_lora.lora_A")).weight += (
                b @ a
            ).double()
    for index, layer in enumerate(model.model.layers):
        if made.per_layer[index]:
            layer.mlp = OneExpert(layer.mlp, made, made.layer(index), number)
    return model


@torch.no_grad()
def difference(ours: Any, theirs: Any) -> float:
    """Largest difference of logits, relative to the largest logit."""
    expected = theirs(IDS).logits
    return float((ours(IDS).logits - expected).abs().max() / expected.abs().max())


def test_every_expert_is_the_merged_lora(base: Path, loras: dict[str, Path]) -> None:
    places = [loras[name] for name in (*LORAS, "half")]
    made = composed(base, *places)
    assert (made.experts, made.per_layer, made.rank, made.attention_rank) == (8, (8, 8), 12, 0)
    for number, place in enumerate(places):
        reference = merged(base, place)
        assert difference(with_expert(base, made, number), reference) < 1e-6, place.name
        assert difference(load(base), reference) > 1e-2, place.name


def test_names_shapes_and_notes(base: Path, loras: dict[str, Path]) -> None:
    made = composed(base, loras["plain"], loras["two_of_three"], loras["one_layer"], called="org/other")
    shapes = {"gate": (F, D), "up": (F, D), "down": (D, F)}
    expected = {
        f"{PREFIX}model.layers.{layer}.mlp.upcycle_experts.{part}_{factor}": shape
        for layer in range(L)
        for part, (outputs, inputs) in shapes.items()
        for factor, shape in (("A", (3, 4, inputs)), ("B", (3, outputs, 4)))
    }
    assert {name: tuple(tensor.shape) for name, tensor in made.tensors.items()} == expected
    assert {tensor.dtype for tensor in made.tensors.values()} == {torch.float32}
    assert all(tensor.is_contiguous() for tensor in made.tensors.values())
    text = "\n".join(made.notes)
    assert "ranks are 3, 4: padded with zeros to 4" in text
    assert "two_of_three updates up_proj, down_proj only" in text
    assert "one_layer does not update the FFN of layer 0" in text
    assert text.count("as its base, not 'org/other'; its shapes fit") == 3


def test_the_base_is_known_by_its_name_alone(base: Path, loras: dict[str, Path]) -> None:
    assert composed(base, loras["plain"], called=f"other/{base.name.upper()}").notes == ()
    lora = read_lora(loras["plain"])
    named = Lora(lora.place, "org/Some-7B", lora.deltas)
    assert compose([named], matched(base), called="/cache/models--org--some-7b/snapshots/0123").notes == ()


def test_the_same_loras_give_the_same_bytes(base: Path, loras: dict[str, Path]) -> None:
    one, two = (composed(base, loras["wide"], loras["patterns"]) for _ in range(2))
    assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items())


def test_a_layer_without_any_update_has_no_experts(base: Path, loras: dict[str, Path]) -> None:
    made = composed(base, loras["one_layer"])
    assert made.per_layer == (0, 1)
    assert not made.layer(0)
    assert "no LoRA updates the FFN of layer 0: no experts there" in made.notes
    assert difference(with_expert(base, made, 0), merged(base, loras["one_layer"])) < 1e-6


def test_an_update_that_is_zero_is_told(base: Path, lora: Path) -> None:
    tensors = tensors_of(lora)
    replace_tensors(lora, {name: value * ("lora_A" in name) for name, value in tensors.items()})
    made = composed(base, lora)
    assert any("its expert is the base" in note for note in made.notes)
    with pytest.raises(InputError, match="have no prototype"):
        prototypes(made.layer(0))


@pytest.mark.parametrize("variant", ["llama_odd_head", "llama_no_gqa", "mistral_odd_head"])
def test_other_shapes_and_families(variant: str, tmp_path: Path) -> None:
    model = save_dense(variant, tmp_path / "model")
    place = save_lora(model, tmp_path / "lora", target_modules="all-linear")
    made = composed(model, place, attention="sum")
    assert difference(with_expert(model, made, 0), merged(model, place)) < 1e-6


# Attention


def test_attention_is_refused_unless_a_policy_is_chosen(base: Path, loras: dict[str, Path]) -> None:
    with pytest.raises(InputError) as caught:
        composed(base, loras["plain"], loras["both"], loras["all"])
    assert "both updates q_proj, o_proj; " in str(caught.value.found)
    assert "all updates q_proj, k_proj, v_proj, o_proj" in str(caught.value.found)
    assert "plain" not in str(caught.value.found)
    assert "--attention-deltas drop" in str(caught.value.hint)


def test_attention_dropped(base: Path, loras: dict[str, Path], tmp_path: Path) -> None:
    made = composed(base, loras["both"], attention="drop")
    assert made.attention_rank == 0
    assert any("q_proj, o_proj are left out" in note for note in made.notes)
    tensors = tensors_of(loras["both"])
    without = save_lora(base, tmp_path / "without", target_modules=["up_proj"], r=5)
    replace_tensors(without, {name: value for name, value in tensors.items() if "up_proj" in name})
    assert difference(with_expert(base, made, 0), merged(base, without)) < 1e-6


@pytest.mark.parametrize(("policy", "share"), [("mean", 1 / 3), ("sum", 1.0)])
def test_attention_mean_and_sum(policy: AttentionDeltas, share: float, base: Path, loras: dict[str, Path]) -> None:
    places = [loras[name] for name in ("plain", "both", "all")]
    made = composed(base, *places, attention=policy)
    assert made.attention_rank == 8
    assert any(f"the {policy} of the updates of the attention over 3 LoRAs has rank 8" in note for note in made.notes)
    dense, models = load(base), [merged(base, place) for place in places]
    for layer in range(L):
        for module in ATTENTION:
            name = f"model.layers.{layer}.self_attn.{module}"
            weight = dense.get_submodule(name).weight
            expected = sum(model.get_submodule(name).weight - weight for model in models) * share
            a, b = (made.tensors[f"{PREFIX}{name}.upcycle_lora.lora_{factor}"] for factor in "AB")
            assert len(a) == b.shape[1] == 8
            assert torch.allclose((b @ a).double(), expected, atol=1e-6)


def test_attention_of_one_lora_is_kept_whole(base: Path, loras: dict[str, Path]) -> None:
    for policy in ("mean", "sum"):
        made = composed(base, loras["all"], attention=policy)
        assert difference(with_expert(base, made, 0), merged(base, loras["all"])) < 1e-6


def test_a_policy_without_attention_changes_nothing(base: Path, loras: dict[str, Path]) -> None:
    plain = composed(base, loras["plain"])
    for policy in ("drop", "mean", "sum"):
        made = composed(base, loras["plain"], attention=policy)
        assert (made.attention_rank, made.notes, made.tensors.keys()) == (0, (), plain.tensors.keys())


def test_loras_without_ffn_are_named(base: Path, loras: dict[str, Path]) -> None:
    with pytest.raises(InputError) as caught:
        composed(base, loras["plain"], loras["attention"], attention="drop")
    assert caught.value.found == f"{loras['attention']} updates q_proj, v_proj"
    assert "all-linear" in str(caught.value.hint)


# Shared A


def shared_loras(base: Path, tmp_path: Path, **other: Any) -> list[Path]:
    places = [save_lora(base, tmp_path / "one", lora_alpha=3), save_lora(base, tmp_path / "two", **other)]
    first, second = (tensors_of(place) for place in places)
    if not other:
        replace_tensors(places[1], {name: first[name] if "lora_A" in name else second[name] for name in second})
    return places


def test_shared_a(base: Path, tmp_path: Path) -> None:
    places = shared_loras(base, tmp_path)
    partial = save_lora(base, tmp_path / "three", target_modules=["up_proj"])
    first = tensors_of(places[0])
    replace_tensors(partial, {n: first[n] if "lora_A" in n else value for n, value in tensors_of(partial).items()})
    places.append(partial)
    made = composed(base, *places, shared_a=True)
    assert {len(value) for name, value in made.tensors.items() if name.endswith("_A")} == {1}
    assert {len(value) for name, value in made.tensors.items() if name.endswith("_B")} == {3}
    for number, place in enumerate(places):
        assert difference(with_expert(base, made, number), merged(base, place)) < 1e-6
    whole = composed(base, *places[:2])
    shared = composed(base, *places[:2], shared_a=True)
    assert torch.equal(prototypes(whole.layer(0)), prototypes(shared.layer(0)))


def test_shared_a_with_mixed_ranks(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rank mismatch with shared A") as caught:
        composed(base, *shared_loras(base, tmp_path, r=6), shared_a=True)
    assert "one has rank 4; " in str(caught.value.found)
    assert "two has rank 6" in str(caught.value.found)


def test_shared_a_that_is_not_shared(base: Path, loras: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="do not share their A") as caught:
        composed(base, loras["plain"], loras["half"], shared_a=True)
    assert "plain and " in str(caught.value.found)


# Prototypes


def test_prototypes_are_singular_vectors(base: Path, loras: dict[str, Path]) -> None:
    places = [loras[name] for name in ("plain", "wide", "stabilised", "two_of_three")]
    made = composed(base, *places)
    dense, models = load(base), [merged(base, place) for place in places]
    for layer in range(L):
        rows_ED = prototypes(made.layer(layer))
        assert rows_ED.dtype == torch.float32
        assert torch.allclose(rows_ED.norm(dim=-1), torch.ones(4))
        for row_D, model in zip(rows_ED, models, strict=True):
            updates = [
                getattr(model.model.layers[layer].mlp, name).weight
                - getattr(dense.model.layers[layer].mlp, name).weight
                for name in ("gate_proj", "up_proj")
            ]
            vector_D = torch.linalg.svd(torch.cat(updates).double()).Vh[0].float()
            vector_D *= vector_D[vector_D.abs().argmax()].sign()
            assert torch.allclose(row_D, vector_D, atol=1e-5)
            assert row_D[row_D.abs().argmax()] > 0


def test_prototypes_where_rank_exceeds_the_width() -> None:
    drawn = torch.Generator().manual_seed(1)
    shapes = {"gate_A": (2, 9, 5), "gate_B": (2, 6, 9), "up_A": (2, 9, 5), "up_B": (2, 6, 9)}
    experts = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    formed = torch.cat([experts[f"{part}_B"] @ experts[f"{part}_A"] for part in ("gate", "up")], dim=1)
    vectors_ED = torch.linalg.svd(formed.double()).Vh[:, 0].float()
    assert torch.allclose((prototypes(experts) * vectors_ED).sum(-1).abs(), torch.ones(2))


def test_no_prototype_without_what_reads(base: Path, loras: dict[str, Path], tmp_path: Path) -> None:
    down = save_lora(base, tmp_path / "down", target_modules=["down_proj"])
    made = composed(base, loras["plain"], down)
    with pytest.raises(InputError, match="no prototype") as caught:
        prototypes(made.layer(0), ["plain", "down"])
    assert caught.value.found == "down"
    with pytest.raises(InputError, match="expert 1"):
        prototypes(made.layer(0))


# Refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, r"is no LoRA adapter; found peft_type 'IA3', expected LORA"),
        ({"peft_type": None}, "is no LoRA adapter"),
        ({"use_dora": True}, "DoRA .* use_dora = True"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"bias": "lora_only"}, "found bias = 'lora_only', expected none"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]; merge it"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "fused parameters"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True"),
        ({"trainable_token_indices": [1]}, "embeddings"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeated"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "its start had changed.*path_initial_model"),
        ({"init_lora_weights": "olora"}, "its start had changed"),
        ({"use_something_new": True}, "not known of LoRA; found 'use_something_new' = True"),
        ({"r": 5}, "the rank of .* is not what the config says; found 4, expected 5"),
        ({"rank_pattern": {"up_proj": 2}}, "the rank of .*up_proj is not what"),
        ({"r": True}, "r is no number"),
        ({"lora_alpha": "8"}, "lora_alpha is no number"),
        ({"alpha_pattern": {"up_proj": None}}, "alpha_pattern of 'up_proj' is no number"),
        ({"alpha_pattern": ["up_proj"]}, "alpha_pattern is no object"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "a pattern that is too involved"),
        ({"alpha_pattern": {".*.*.*.*b": 1}}, "a pattern that is too involved"),
        ({"alpha_pattern": {"up[": 1}}, "not a regular expression"),
        ({"alpha_pattern": {"(?i:up)(?s)": 1}}, "too involved|not a regular expression"),
        ({"use_rslora": "yes"}, "use_rslora is neither"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(fields: dict[str, Any], message: str, lora: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_lora(configure(lora, **fields))


NAME = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {**tensors, NAME: tensors[NAME] * torch.nan}, "up_proj.* is not finite in float32; found nan"),
        (lambda tensors: {**tensors, NAME: tensors[NAME] / 0}, "is not finite in float32; found -?inf"),
        (lambda tensors: {**tensors, NAME: tensors[NAME].double() * 1e39}, "is not finite in float32"),
        (lambda tensors: {**tensors, NAME: tensors[NAME].int()}, "no matrix of floats; found I32"),
        (lambda tensors: {**tensors, NAME: tensors[NAME][None]}, "no matrix of floats"),
        (lambda tensors: {**tensors, NAME: tensors[NAME][:3]}, "do not fit each other"),
        (lambda tensors: {name: value for name, value in tensors.items() if name != NAME}, "only one of lora_A and"),
        (lambda _: {}, "holds no tensors"),
        (lambda tensors: {**tensors, NAME.replace("lora_A", "lora_A.default"): torch.ones(1)}, "not named as peft"),
        (lambda tensors: {**tensors, NAME.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(1)}, "DoRA"),
        (lambda tensors: {**tensors, NAME.replace("lora_A.weight", "lora_B.bias"): torch.ones(1)}, "biases"),
        (lambda tensors: {**tensors, "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(1)}, "embedd"),
        (lambda tensors: {**tensors, "base_model.model.model.norm.weight": torch.ones(1)}, "whole weights"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(change: Change, message: str, lora: Path) -> None:
    replace_tensors(lora, change(tensors_of(lora)))
    with pytest.raises(InputError, match=message):
        read_lora(lora)


def test_real_variants_of_peft_are_refused(base: Path, tmp_path: Path) -> None:
    fields: list[tuple[dict[str, Any], str]] = [
        ({"use_dora": True}, "DoRA"),
        ({"target_modules": [*FFN, "embed_tokens"]}, "the embeddings or the head"),
        ({"modules_to_save": ["lm_head"]}, "whole weights are saved"),
        ({"bias": "all"}, "biases"),
    ]
    for number, (settings, message) in enumerate(fields):
        place = save_lora(base, tmp_path / str(number), **settings)
        with pytest.raises(InputError, match=message):
            read_lora(place)


def test_files_that_are_refused(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such"):
        read_lora(tmp_path / "nowhere")
    weights = (lora / "adapter_model.safetensors").read_bytes()
    (lora / "adapter_model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(InputError, match="truncated"):
        read_lora(lora)
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    with pytest.raises(InputError, match="pickled") as caught:
        read_lora(lora)
    assert "save it again" in str(caught.value.hint)
    (lora / "adapter_model.bin").unlink()
    with pytest.raises(InputError, match="no weights"):
        read_lora(lora)
    (lora / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        read_lora(lora)


def test_modules_that_experts_have_not(base: Path, tmp_path: Path) -> None:
    place = save_lora(base, tmp_path / "head", target_modules=[*FFN, "lm_head"])
    with pytest.raises(InputError, match="changes the embeddings or the head"):
        read_lora(place)
    replace_tensors(place, {name: value for name, value in tensors_of(place).items() if "base_layer" not in name})
    with pytest.raises(InputError, match="updates lm_head, which is no linear layer of an FFN or an attention"):
        composed(base, place)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_hidden_layers": 1}, "another base; found updates of layer 1, expected layers 0 to 0"),
        ({"intermediate_size": 64}, r"another base: shapes .*\(4, 48\) and \(32, 4\), expected \(4, 64\)"),
        ({"hidden_size": 64}, "another base: shapes"),
    ],
)
def test_another_base(sizes: dict[str, int], message: str, loras: dict[str, Path], tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**{**SMALL, **sizes})).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        composed(tmp_path, loras["plain"])


def test_requests_that_are_refused(base: Path, lora: Path) -> None:
    with pytest.raises(InputError, match="no LoRA"):
        compose([], matched(base))
    tensors = {name: value * 1e37 if "lora_B" in name else value for name, value in tensors_of(lora).items()}
    configure(replace_tensors(lora, tensors), lora_alpha=4000)
    with pytest.raises(InputError, match="too large for float32"):
        composed(base, lora)


def test_a_damaged_config_is_refused_and_nothing_else(lora: Path) -> None:
    path = lora / "adapter_config.json"
    text = path.read_bytes()
    cuts = sorted({0, 1, len(text) // 2, *range(3, len(text), 97)})
    for start, end in pairwise(cuts):
        path.write_bytes(text[:start] + text[end:])
        try:
            read_lora(lora)
        except UpcycleError:
            continue
    path.write_bytes(text)
    read_lora(lora)
