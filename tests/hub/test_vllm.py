"""vLLM finds a place for every tensor of a conversion, and every config field it reads says what the dense model says.

vLLM does not install where these tests run, so what its loader does is a table here. Facts read in vllm-project/vllm:
`models/mixtral.py` at f0e26957c6af, `layers/fused_moe/layer.py` (make_expert_params_mapping) at c439a139790c,
`models/utils.py` (AutoWeightsLoader), `layers/rotary_embedding/__init__.py` (get_rope) at 07b12f1b16d5, and
`transformers_utils/config.py` (patch_rope_parameters) at 0036026e7171, which is v0.24 or later.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoConfig

from tests.conftest import edit_json, run_convert
from tests.models import VARIANTS

EXPERTS = 3

STACKED = {"q_proj": ("qkv_proj", "q"), "k_proj": ("qkv_proj", "k"), "v_proj": ("qkv_proj", "v")}
"""Part of a checkpoint name -> the parameter that it becomes a shard of."""

EXPERT = {"w1": "w13_", "w3": "w13_", "w2": "w2_"}
"""Matrix of an expert -> the parameter that it becomes a slice of: gate and up share one, down is alone."""

SKIPPED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Names with these parts are passed over; a conversion has none."""

FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip
"""What the model is built from besides the experts; each must be in config.json, for Mixtral's defaults differ."""

ROPE = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""Rope type -> what else is read of `rope_parameters`, besides `rope_theta`."""

NOT_SILU = {"llama_gelu"}
"""The experts are SwiGLU there whatever `hidden_act` says: these models come out wrong, and no config can help it."""

Slot = tuple[str, str | None, int | None]
"""A parameter of vLLM's model, the shard of it, the expert."""


def slot_of(name: str, experts: int) -> Slot | None:
    """Where a tensor of a checkpoint goes: by parts of its name, in the loader's order. None: nowhere, on purpose."""
    if any(part in name for part in SKIPPED):
        return None
    for part, (parameter, shard) in STACKED.items():
        if part in name:
            return name.replace(part, parameter), shard, None
    for expert in range(experts):
        for matrix, parameter in EXPERT.items():
            part = f"experts.{expert}.{matrix}."
            if part in name:
                return name.replace(part, f"experts.{parameter}"), matrix, expert
    return name, None, None


def slots(config: Mapping[str, Any]) -> Iterator[tuple[Slot, tuple[int, ...]]]:
    """Every place that must be filled before the model is whole, with the shape of what belongs there."""
    D, F, V, E = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size", "num_local_experts"))
    Q, K = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    yield ("model.embed_tokens.weight", None, None), (V, D)
    yield ("model.norm.weight", None, None), (D,)
    if not config["tie_word_embeddings"]:  # else it is the embeddings
        yield ("lm_head.weight", None, None), (V, D)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield (f"{prefix}.input_layernorm.weight", None, None), (D,)
        yield (f"{prefix}.post_attention_layernorm.weight", None, None), (D,)
        for shard, rows in (("q", Q), ("k", K), ("v", K)):
            yield (f"{prefix}.self_attn.qkv_proj.weight", shard, None), (rows, D)
        yield (f"{prefix}.self_attn.o_proj.weight", None, None), (D, Q)
        yield (f"{prefix}.block_sparse_moe.gate.weight", None, None), (E, D)
        for expert in range(E):
            for matrix, shape in (("w1", (F, D)), ("w3", (F, D)), ("w2", (D, F))):
                yield (f"{prefix}.block_sparse_moe.experts.{EXPERT[matrix]}weight", matrix, expert), shape


def problems(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What the loader would raise for, drop or leave random."""
    expected = dict(slots(config))
    placed = {name: slot_of(name, config["num_local_experts"]) for name in tensors}
    filled = Counter(placed.values())
    return [
        *(f"{name}: no place" for name, slot in placed.items() if slot not in expected),
        *(f"{slot}: filled {filled[slot]} times" for slot in expected if filled[slot] != 1),
        *(
            f"{name}: {tensors[name]} is not {expected[slot]}"
            for name, slot in placed.items()
            if slot in expected and tensors[name] != expected[slot]
        ),
    ]


def shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    (path,) = directory.glob("*.safetensors")
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict


def config_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "config.json").read_bytes()))


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def pair(
    request: pytest.FixtureRequest, dense: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """The name of a variant, its dense directory, its mixture of experts."""
    directory = dense(request.param)
    moe = run_convert(directory, tmp_path_factory.mktemp("vllm") / "moe", experts=EXPERTS, top_k=2)
    return request.param, directory, moe


@pytest.fixture(scope="module")
def plain(dense: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_convert(dense("llama"), tmp_path_factory.mktemp("vllm") / "moe", experts=EXPERTS, top_k=2)


def test_every_tensor_has_its_place(pair: tuple[str, Path, Path]) -> None:
    assert problems(config_of(pair[2]), shapes(pair[2])) == []


def test_config_fields_are_there_and_the_dense_models(pair: tuple[str, Path, Path]) -> None:
    _, directory, moe = pair
    wanted, config = AutoConfig.from_pretrained(directory), config_of(moe)
    assert {name: config.get(name) for name in FIELDS} == {name: getattr(wanted, name) for name in FIELDS}
    # the window comes from the config object, where an absent field is Mixtral's default: none
    assert AutoConfig.from_pretrained(moe).sliding_window == getattr(wanted, "sliding_window", None)
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"


def test_the_experts_are_counted(pair: tuple[str, Path, Path]) -> None:
    config = config_of(pair[2])
    assert (config["architectures"], config["model_type"]) == (["MixtralForCausalLM"], "mixtral")
    counts = [config[name] for name in ("num_experts", "num_local_experts", "num_experts_per_tok")]
    assert counts == [EXPERTS, EXPERTS, 2]  # the first is what expert parallelism asks for first
    assert "quantization_config" not in config


def test_rope_is_read_alike_before_and_after_transformers_5(pair: tuple[str, Path, Path]) -> None:
    _, directory, moe = pair
    config = config_of(moe)
    wanted = dict(AutoConfig.from_pretrained(directory).rope_parameters)
    assert config["rope_parameters"] == wanted
    assert dict(AutoConfig.from_pretrained(moe).rope_parameters) == wanted
    # vLLM up to v0.23 with transformers 4: rope_scaling, and rope_theta put into it
    assert {**(config.get("rope_scaling") or {"rope_type": "default"}), "rope_theta": config["rope_theta"]} == wanted
    assert set(wanted) >= {"rope_theta", "rope_type", *ROPE[wanted["rope_type"]]}


def test_the_activation_is_the_only_one_that_vllm_has(pair: tuple[str, Path, Path]) -> None:
    name, _, moe = pair
    assert (config_of(moe)["hidden_act"] == "silu") is (name not in NOT_SILU)


DAMAGE: dict[str, Callable[[dict[str, tuple[int, ...]]], Any]] = {
    "an expert is missing": lambda tensors: tensors.pop("model.layers.1.block_sparse_moe.experts.2.w3.weight"),
    "an expert too many": lambda tensors: tensors.update({"model.layers.0.block_sparse_moe.experts.3.w1.weight": ()}),
    "the dense name": lambda tensors: tensors.update({"model.layers.0.mlp.gate_proj.weight": (48, 32)}),
    "fused experts": lambda tensors: tensors.update({"model.layers.0.mlp.experts.gate_up_proj": (3, 96, 32)}),
    "no router": lambda tensors: tensors.pop("model.layers.0.block_sparse_moe.gate.weight"),
    "a bias": lambda tensors: tensors.update({"model.layers.0.self_attn.o_proj.bias": (32,)}),
    "down for up": lambda tensors: tensors.update({"model.layers.0.block_sparse_moe.experts.0.w3.weight": (32, 48)}),
    "a layer too many": lambda tensors: tensors.update({"model.layers.2.input_layernorm.weight": (32,)}),
    "two of one": lambda tensors: tensors.update({"model.layers.0.self_attn.qkv_proj.weight": (64, 32)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_table_notices(damage: str, plain: Path) -> None:
    tensors = shapes(plain)
    assert problems(config_of(plain), tensors) == []
    DAMAGE[damage](tensors)
    assert problems(config_of(plain), tensors) != []


def test_without_theta_the_reading_differs(plain: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(plain)
    theta = dict(AutoConfig.from_pretrained(directory).rope_parameters)["rope_theta"]
    edit_json(directory / "config.json", rope_theta=..., rope_parameters=...)
    assert dict(AutoConfig.from_pretrained(directory).rope_parameters).get("rope_theta") != theta
