"""The table of pairs, held against transformers' own classes; what the target cannot express is refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from transformers import CONFIG_MAPPING, MixtralConfig

from tests.conftest import edit_json
from tests.families.models import MODELS
from tests.models import SMALL
from upcycle.checkpoint.reader import Checkpoint, open_checkpoint
from upcycle.errors import CheckpointError, InputError, RequestError, UnsupportedError
from upcycle.families.config import ACTIVATIONS, target_config
from upcycle.families.find import find_pairs
from upcycle.families.match import match
from upcycle.families.pairs import DENSE, PAIRS, TARGETS, Pair, pair_of
from upcycle.families.parts import ROLES, When, dimension
from upcycle.families.rope import FIELDS as ROPE_FIELDS
from upcycle.families.rope import TYPES
from upcycle.families.rules import Carry, Each, Keep, Made, Means, Rule

CONFIGS: dict[str, Any] = {name: CONFIG_MAPPING[name] for name in DENSE}
MOE_CONFIGS: dict[str, Any] = {name: CONFIG_MAPPING[name] for name in TARGETS}
MIXTRALS = ("llama", "mistral")
"""Dense models that share the sentences of what mixtral cannot express."""

DERIVED = ("num_key_value_heads", "layer_types", "layer_rope_theta")
"""Fields that a class makes of others where they are null."""
NEEDED: dict[str, dict[str, Any]] = {"olmo3": {"layer_types": ["full_attention"] * 32}}
"""What a config must say because the class's default cannot be expressed."""

LLAMA = {"model_type": "llama", **{name: value for name, value in SMALL.items() if name != "rope_theta"}}
"""A sound config without rope settings."""


@pytest.fixture(params=sorted(DENSE))
def pair(request: pytest.FixtureRequest) -> Pair:
    """The pair that `convert` makes of each dense model."""
    return pair_of(request.param)


def defaults(config_class: Any) -> Any:
    """The config that a class makes of nothing; what differs between its layers is that of most of them."""
    config = config_class()
    config.allow_global_per_layer_attribute_access = True
    return config


def carried(pair: Pair) -> list[tuple[str, Carry]]:
    return [(name, rule) for name, rule in pair.fields.items() if isinstance(rule, Carry)]


def rope_settings(config: Any, pair: Pair) -> dict[str, Any]:
    """What the dense class makes of its rope settings, of the layers that count."""
    kind = pair.dense.rope.of if pair.dense.rope else None
    settings = config.rope_parameters[kind] if kind else config.rope_parameters
    return {name: value for name, value in settings.items() if name != "partial_rotary_factor"}


def refused(config: dict[str, Any], **options: Any) -> InputError:
    with pytest.raises(UnsupportedError) as caught:
        target_config(find_pairs(config)[0], config, **options)
    return caught.value


def with_config(directory: Path, **changes: Any) -> Checkpoint:
    """The checkpoint with some config fields replaced; `...` removes one."""
    checkpoint = open_checkpoint(directory)
    config = {**checkpoint.config, **changes}
    return replace(checkpoint, config={name: value for name, value in config.items() if value is not ...})


# -- the table against transformers -----------------------------------------------------------------------------------


def test_every_pair_is_tested_from_end_to_end() -> None:
    made = {(model.model_type, model.becomes) for model in MODELS.values()}
    assert made == {(pair.dense.model_type, pair.target.model_type) for pair in PAIRS if "full" in pair.forms}


def test_defaults_are_those_of_the_dense_class(pair: Pair) -> None:
    config = defaults(CONFIGS[pair.dense.model_type])
    for name, rule in carried(pair):
        if name in DERIVED and rule.default is None:
            said = {"model_type": pair.dense.model_type, **NEEDED.get(pair.dense.model_type, {})}
            made = MOE_CONFIGS[pair.target.model_type](**target_config(pair, said))
            assert getattr(config, name) == getattr(made, name), name
        else:
            assert getattr(config, name) == rule.default, name
    if pair.dense.rope is None:  # its settings pass as they are
        return
    assert rope_settings(config, pair) == {"rope_theta": pair.dense.rope.theta, "rope_type": "default"}
    assert getattr(config, "original_max_position_embeddings", None) == pair.dense.rope.original_length


def test_every_field_that_the_class_writes_has_a_rule(pair: Pair) -> None:
    known = {*pair.fields, *ROPE_FIELDS, "head_dim"}
    assert set(CONFIGS[pair.dense.model_type]().to_dict()) <= known


def test_fields_left_to_the_reader_have_the_same_default_in_both_classes(pair: Pair) -> None:
    """A kept field is not written when absent, so both classes must fill it in alike."""
    dense, moe = CONFIGS[pair.dense.model_type]().to_dict(), MOE_CONFIGS[pair.target.model_type]().to_dict()
    kept = [name for name in dense if isinstance(pair.fields.get(name), Keep)]
    assert len(kept) > 8
    assert {name: dense[name] for name in kept} == {name: moe[name] for name in kept}


def test_every_field_of_the_target_is_written_or_left_alike(pair: Pair) -> None:
    """What the target computes with is in the output, so that its class's own defaults never come in."""
    default = MOE_CONFIGS[pair.target.model_type]()
    written = target_config(pair, {"model_type": pair.dense.model_type, **NEEDED.get(pair.dense.model_type, {})})
    written |= dict.fromkeys([*pair.target.fields, *pair.target.constants, *pair.constants])
    written |= (pair.target.layer_choice.fields((True,)) or {}) if pair.target.layer_choice else {}
    kept = {name for name, rule in pair.fields.items() if isinstance(rule, Keep)}
    left = {name: value for name, value in default.to_dict().items() if name not in {*written, *kept}}
    idle = {"_name_or_path", "transformers_version", "is_encoder_decoder", "pretraining_tp"}
    assert {name: value for name, value in left.items() if name not in idle and value is not None} == {}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_empty_config_becomes_what_the_dense_class_assumes(name: str) -> None:
    pair = pair_of(name)
    ours = target_config(pair, {"model_type": name, **NEEDED.get(name, {})})
    config = defaults(lambda: CONFIGS[name](**NEEDED.get(name, {})))
    theirs = pair.dense.as_read(config.to_dict())
    loaded = defaults(lambda: MOE_CONFIGS[pair.target.model_type](**ours))
    for field in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps",
        "tie_word_embeddings", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id",
        "attention_dropout", *(field for field, rule in pair.fields.items() if isinstance(rule, Each) and rule.carried),
    ):  # fmt: skip
        rule = pair.fields.get(field)
        if field in config.to_dict() and isinstance(rule, Carry | Keep | Each | Means):
            expected = rule.values[theirs[field]] if isinstance(rule, Means) else theirs[field]
            assert getattr(loaded, field) == expected, field
    if pair.dense.rope:
        turned = {"partial_rotary_factor": pair.dense.rope.rotated} if pair.target.partial_rotary else {}
        assert loaded.rope_parameters == {**rope_settings(config, pair), **turned}
    else:
        assert loaded.rope_parameters == config.rope_parameters
    assert loaded.head_dim == (theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"])
    if "sliding_window" in loaded.to_dict() and not isinstance(pair.fields.get("sliding_window"), Made):
        assert loaded.sliding_window == theirs.get("sliding_window")


def test_every_part_of_a_dense_model_has_one_place_in_its_target() -> None:
    for pair in PAIRS:
        placed = [
            part.replace("expert.", "").replace("shared.", "") for row in pair.target.tensors for part in row.parts
        ]
        refused = {name for name, rule in pair.fields.items() if not isinstance(rule, Carry | Each)}
        parts = {
            name
            for name, place in pair.dense.parts.items()
            if not isinstance(place.when, When) or place.when.field not in refused
        }
        assert parts <= set(placed), (pair.dense.model_type, pair.target.model_type)
        assert {row.role for row in pair.target.tensors} <= set(ROLES)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("Q", 12), ("2F", 14), ("Q+2K", 12 + 2 * 4), ("1", 1), ("0", 0), ("Q+K", 16), ("3", 3)],
)
def test_dimensions(expression: str, expected: int) -> None:
    assert dimension(expression, {"Q": 12, "K": 4, "F": 7}) == expected


def test_golden_config() -> None:
    assert target_config(pair_of("llama"), {**LLAMA, "rope_theta": 5e5, "bos_token_id": 3, "_name_or_path": "x"}) == {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,  # 32 / 4
        "max_position_embeddings": 64,
        "attention_dropout": 0.0,
        "rms_norm_eps": 3e-5,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "bos_token_id": 3,
        "rope_theta": 5e5,
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
    }


# -- which family -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", ["gpt2", "mixtral", "", None, 3, ["llama"], {}])
def test_unknown_model_type(found: Any) -> None:
    error = refused({**LLAMA, "model_type": found})
    assert (error.what, error.found, error.expected) == (
        "no mixture of experts is known for this model", f"model_type {found!r}", f"one of {', '.join(DENSE)}",
    )  # fmt: skip


def test_no_model_type() -> None:
    assert refused({"vocab_size": 3}).found == "model_type None"


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_local_experts", 8), ("num_experts", 64), ("n_routed_experts", 160), ("num_experts_per_tok", 2)],
)
def test_a_mixture_of_experts_already(field: str, value: int) -> None:
    error = refused({**LLAMA, "model_type": "mixtral", field: value})
    assert str(error) == f"the model is a mixture of experts already; found {field} = {value}, mixtral"


@pytest.mark.parametrize("found", [["LlamaForSequenceClassification"], ["LlamaForCausalLM", "Other"], [], "Llama"])
def test_another_architecture(found: Any) -> None:
    error = refused({**LLAMA, "architectures": found})
    assert (error.what, error.found, error.expected) == (
        "the checkpoint holds another kind of model", found, "LlamaForCausalLM",
    )  # fmt: skip


@pytest.mark.parametrize("architectures", [None, ["LlamaForCausalLM"]])
def test_the_architecture_may_be_unsaid(architectures: Any) -> None:
    config = {**LLAMA, "architectures": architectures}
    assert target_config(find_pairs(config)[0], config)["architectures"] == ["MixtralForCausalLM"]


# -- fields that cannot be expressed ----------------------------------------------------------------------------------

REFUSED = {
    "attention_bias": (True, "the target has no such bias"),
    "mlp_bias": (True, "the target has no such bias"),
    "no_rope_layers": ([1, 1, 1, 0], "the target rotates in every layer"),
    "no_rope_layer_interval": (4, "the target rotates in every layer"),
    "rope_interleaved": (True, "the target rotates halves, not pairs"),
    "layer_types": (["full_attention", "sliding_attention"], "the target computes every layer alike"),
    "quantization_config": (
        {"quant_method": "gptq"}, "quantised weights cannot be copied into experts; dequantise the model first",
    ),
    "compression_config": ({}, "quantised weights cannot be copied into experts; dequantise the model first"),
    "auto_map": ({"AutoModel": "modeling.Own"}, "the model needs code of its own"),
    "is_encoder_decoder": (True, "the target is a decoder"),
    "add_cross_attention": (True, "the target has no cross-attention"),
    "pruned_heads": ({"0": [1]}, "the target has all its heads"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("family", MIXTRALS)
def test_refused_by_name(family: str, name: str) -> None:
    value, why = REFUSED[name]
    if (family, name) == ("mistral", "layer_types"):
        why = "a mistral with layer_types is read as a Ministral, another architecture"
    error = refused({**LLAMA, "model_type": family, name: value})
    assert error.what == f"config.json says what mixtral cannot express: {name} = {ascii(value)[:60]}: {why}"
    assert error.hint is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_field_cannot_be_ignored_away(name: str) -> None:
    with pytest.raises(RequestError, match=f"--ignore-config {name}: the field is accounted for"):
        target_config(pair_of("llama"), {**LLAMA, name: REFUSED[name][0]}, (name,))


@pytest.mark.parametrize("name", REFUSED)
def test_null_says_nothing(name: str) -> None:
    assert name not in target_config(pair_of("llama"), {**LLAMA, name: None})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_bias", False), ("no_rope_layers", [1, 1]), ("no_rope_layers", []), ("pruned_heads", {}),
        ("layer_types", ["full_attention"] * 2), ("is_decoder", True), ("sliding_window", 4096), ("pretraining_tp", 2),
    ],
)  # fmt: skip
def test_a_llama_may_say_what_is_so_anyway(name: str, value: Any) -> None:
    assert name not in target_config(pair_of("llama"), {**LLAMA, name: value})


def test_a_mistral_keeps_its_window() -> None:
    config = {**LLAMA, "model_type": "mistral"}
    mistral = pair_of("mistral")
    assert target_config(mistral, config)["sliding_window"] == 4096  # the class's default
    assert target_config(mistral, {**config, "sliding_window": None})["sliding_window"] is None
    assert target_config(mistral, {**config, "sliding_window": 77})["sliding_window"] == 77


def test_all_problems_are_told_at_once() -> None:
    error = refused({**LLAMA, "attention_bias": True, "qk_norm": True, "vocab_size": "96"})
    assert error.what == (
        "config.json says what mixtral cannot express: vocab_size = '96': expected a size; "
        "attention_bias = True: the target has no such bias; qk_norm = True: transformers computes no such norm"
    )
    assert error.hint == "if a field has no influence, --ignore-config NAME leaves it out"


def test_a_field_that_matters_elsewhere_passes_when_the_user_says_so() -> None:
    config = {**LLAMA, "logit_scale": 0.5}
    assert "logit_scale = 0.5: transformers does not scale these values" in refused(config).what
    result = target_config(pair_of("llama"), config, ("logit_scale",))
    assert result == target_config(pair_of("llama"), LLAMA)


def test_a_field_that_the_dense_class_reads_is_refused_without_a_rule() -> None:
    assert "max_new_tokens = 5: not known to have a counterpart" in refused({**LLAMA, "max_new_tokens": 5}).what


def test_a_long_value_is_cut() -> None:
    assert len(str(refused({**LLAMA, "logit_scale": "x" * 10**6}))) < 400


# -- fields that lie --------------------------------------------------------------------------------------------------

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")


@pytest.mark.parametrize("value", ["32", -32, 0, True, 2**31, 10**400, 32.0, 1e300, [32], {}], ids=lambda v: str(v)[:9])
def test_sizes_must_be_sizes(value: Any) -> None:
    for name in SIZES:
        assert f"{name} = {ascii(value)[:60]}: expected a size" in refused({**LLAMA, name: value}).what


def test_sizes_must_not_be_null() -> None:
    for name in (name for name in SIZES if name != "head_dim"):
        assert str(refused({**LLAMA, name: None})) == f"config.json: {name} is null"


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("rms_norm_eps", "1e-5", "number"), ("rms_norm_eps", -1e-5, "number"), ("rms_norm_eps", True, "number"),
        ("rms_norm_eps", None, "number"), ("initializer_range", float("inf"), "number"),
        ("tie_word_embeddings", 1, "flag"), ("tie_word_embeddings", "false", "flag"),
    ],
)  # fmt: skip
def test_numbers_and_flags(name: str, value: Any, kind: str) -> None:
    assert f"{name} = {value!r}: expected a {kind}" in refused({**LLAMA, name: value}).what


def test_query_heads_share_key_heads_evenly() -> None:
    error = refused({**LLAMA, "num_key_value_heads": 3})
    assert str(error) == "config.json: num_attention_heads is not a multiple of num_key_value_heads; found 4 and 3"


def test_more_heads_than_width() -> None:
    assert refused({**LLAMA, "num_attention_heads": 64}).what == "config.json: head_dim = 0: expected a size"


@pytest.mark.parametrize("lie", [1, 3, 2**31 - 1])
def test_number_of_layers(tiny: Path, lie: int) -> None:
    with pytest.raises(CheckpointError) as caught:
        match(with_config(tiny, num_hidden_layers=lie))
    assert str(caught.value) == (
        f"{tiny}: the layers do not match config.json (num_hidden_layers); found 2 layers, expected {lie}, numbered "
        "from 0; the checkpoint is incomplete or its config is another model's"
    )


@pytest.mark.parametrize(
    ("field", "lie", "tensor", "found", "expected"),
    [
        ("intermediate_size", 47, "model.layers.0.mlp.gate_proj.weight", (48, 32), (47, 32)),
        ("vocab_size", 97, "model.embed_tokens.weight", (96, 32), (97, 32)),
        ("num_attention_heads", 8, "model.layers.0.self_attn.k_proj.weight", (16, 32), (8, 32)),  # 2 heads of 32/8
        ("num_key_value_heads", 4, "model.layers.0.self_attn.k_proj.weight", (16, 32), (32, 32)),  # 4 heads of 8
        ("head_dim", 16, "model.layers.0.self_attn.q_proj.weight", (32, 32), (64, 32)),  # 4 heads of 16
    ],
)
def test_sizes_must_be_those_of_the_tensors(
    tiny: Path, field: str, lie: int, tensor: str, found: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    fields = {"head_dim": ...} if field == "num_attention_heads" else {}
    with pytest.raises(CheckpointError) as caught:
        match(with_config(tiny, **{**fields, field: lie}))
    error = caught.value
    assert (error.what, error.found, error.expected) == (
        f"tensor {tensor!r} does not match config.json", found, expected,
    )  # fmt: skip
    assert error.where == str(tiny / "model.safetensors")


# -- tensors ----------------------------------------------------------------------------------------------------------


def rewritten(directory: Path, change: Callable[[dict[str, Any]], Any]) -> Checkpoint:
    """The checkpoint after `change` had its way with the dict of arrays."""
    import numpy as np

    path = directory / "model.safetensors"
    arrays = {name: np.zeros(spec.shape, np.float16) for name, spec in open_checkpoint(directory).tensors.items()}
    change(arrays)
    save_file(arrays, path)
    assert load_file(path).keys() == arrays.keys()
    return open_checkpoint(directory)


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"],
)
def test_missing_tensor(tiny: Path, copy_of: Callable[[Path], Path], name: str) -> None:
    checkpoint = rewritten(copy_of(tiny), lambda arrays: arrays.pop(name))
    with pytest.raises(CheckpointError) as caught:
        match(checkpoint)
    assert caught.value.what == f"tensor {name!r} is missing"
    assert caught.value.hint == ("config.json says tie_word_embeddings = false" if name == "lm_head.weight" else None)


def test_missing_layer_in_the_middle(dense: Callable[[str], Path], copy_of: Callable[[Path], Path]) -> None:
    def renumber(arrays: dict[str, Any]) -> None:
        for name in [name for name in arrays if name.startswith("model.layers.1.")]:
            arrays[name.replace(".1.", ".2.")] = arrays.pop(name)

    with pytest.raises(CheckpointError) as caught:
        match(rewritten(copy_of(dense("mistral")), renumber))
    assert (caught.value.found, caught.value.expected) == ("2 layers", "2, numbered from 0")


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_norm.weight"])
def test_unknown_tensor(tiny: Path, copy_of: Callable[[Path], Path], name: str) -> None:
    def add(arrays: dict[str, Any]) -> None:
        arrays[name] = arrays["model.norm.weight"]

    checkpoint = rewritten(copy_of(tiny), add)
    with pytest.raises(UnsupportedError) as caught:
        match(checkpoint)
    assert str(caught.value) == f"{checkpoint.directory}: 1 tensors have no place in mixtral; found {name}"


def test_buffers_of_old_checkpoints_are_left_out(tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    def add(arrays: dict[str, Any]) -> None:
        arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = arrays["model.norm.weight"][:4]

    assert match(rewritten(copy_of(tiny), add)).sizes["L"] == 2


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
def test_quantised_tensor(tiny: Path, copy_of: Callable[[Path], Path], dtype: str) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def quantise(arrays: dict[str, Any]) -> None:
        arrays[name] = arrays[name].astype(dtype)

    checkpoint = rewritten(copy_of(tiny), quantise)
    with pytest.raises(UnsupportedError) as caught:
        match(checkpoint)
    error, word = caught.value, {"int8": "I8", "uint8": "U8", "int32": "I32", "bool": "BOOL"}[dtype]
    assert (error.what, error.found) == (f"tensor {name!r} is quantised", word)
    assert error.expected == "F64, F32, F16, BF16"


def test_fp8_is_quantised(tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    import torch
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    path = copy_of(tiny) / "model.safetensors"
    tensors = load(path)
    tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].to(
        torch.float8_e4m3fn
    )
    save(tensors, path)
    with pytest.raises(UnsupportedError) as caught:
        match(open_checkpoint(path.parent))
    assert caught.value.found == "F8_E4M3"


def test_tied_head_may_be_absent_or_present(
    dense: Callable[[str], Path], tiny: Path, copy_of: Callable[[Path], Path]
) -> None:
    tied = open_checkpoint(dense("llama_tied"))
    assert "lm_head.weight" not in tied.tensors
    assert match(tied).config["tie_word_embeddings"] is True
    both = copy_of(tiny)
    edit_json(both / "config.json", tie_word_embeddings=True)
    assert match(open_checkpoint(both)).config["tie_word_embeddings"] is True


# -- rope -------------------------------------------------------------------------------------------------------------

LLAMA3: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 16}
DIALECTS: dict[str, dict[str, Any]] = {
    "tf4, type": {"rope_theta": 5e4, "rope_scaling": {"type": "llama3", **LLAMA3}},
    "tf4, rope_type": {"rope_theta": 5e4, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "tf4, both types": {"rope_theta": 5e4, "rope_scaling": {"type": "llama3", "rope_type": "llama3", **LLAMA3}},
    "tf5": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e4, **LLAMA3}},
    "tf5, theta beside": {"rope_theta": 5e4, "rope_parameters": {"rope_type": "llama3", **LLAMA3}},
    "tf5, type": {"rope_parameters": {"type": "llama3", "rope_theta": 5e4, **LLAMA3}},
    "both": {
        "rope_theta": 5e4,
        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e4, **LLAMA3},
    },
    "empty scaling": {"rope_scaling": {}, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e4, **LLAMA3}},
    "null scaling": {"rope_scaling": None, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e4, **LLAMA3}},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_rope_dialect_gives_the_same_fields(dialect: str) -> None:
    result = target_config(pair_of("llama"), {**LLAMA, **DIALECTS[dialect]})
    assert {name: result[name] for name in ROPE_FIELDS if name in result} == {
        "rope_theta": 5e4,
        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e4, **LLAMA3},
    }


@pytest.mark.parametrize(
    "rope",
    [
        *DIALECTS.values(),
        {},
        {"rope_theta": 77.0},
        {"rope_theta": 77},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
        {"rope_theta": 99.0, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
        {"rope_theta": 99.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": {"rope_theta": 77.0}},
        {"rope_theta": 99.0, "rope_scaling": {"type": "yarn", **YARN}},
        {"rope_theta": 99.0, "rope_scaling": {"rope_type": "yarn", **YARN}, "partial_rotary_factor": 1.0},
        {"rope_scaling": None, "rope_parameters": None},
        {
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
            "original_max_position_embeddings": 16,
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MIXTRALS)
def test_transformers_reads_the_same_from_input_and_output(name: str, rope: dict[str, Any]) -> None:
    config = {**LLAMA, "model_type": name, **rope}
    # As it is read from disk: the classes change the dicts that they are given.
    dense = CONFIGS[name](**json.loads(json.dumps(config)))
    moe = MixtralConfig(**json.loads(json.dumps(target_config(pair_of(name), config))))
    read = {key: value for key, value in dense.rope_parameters.items() if key not in ("partial_rotary_factor", "type")}
    assert moe.rope_parameters == read
    # Programs made for transformers 4 read only these.
    old = target_config(pair_of(name), config)
    assert old["rope_theta"] == dense.rope_parameters["rope_theta"]
    scaled = dense.rope_parameters["rope_type"] != "default"
    assert old.get("rope_scaling", {}).get("rope_type") == (dense.rope_parameters["rope_type"] if scaled else None)


@pytest.mark.parametrize("where", ["beside", "inside"])
@pytest.mark.parametrize("factor", [0.5, 0, 2])
def test_partial_rotation(factor: float, where: str) -> None:
    inside = {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": factor}
    fields = {"partial_rotary_factor": factor} if where == "beside" else {"rope_parameters": inside}
    error = refused({**LLAMA, **fields})
    assert (error.what, error.found) == (
        "config.json: partial_rotary_factor is not 1, which the dense class ignores", factor,
    )  # fmt: skip


def test_rope_that_differs_between_layers() -> None:
    nested = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert refused({**LLAMA, "rope_parameters": nested}).what == (
        "config.json: rope settings differ between layer types, which the target cannot express"
    )


@pytest.mark.parametrize("theta", ["1e4", -1.0, 0, True, [1e4]])
def test_theta_must_be_a_positive_number(theta: Any) -> None:
    for fields in ({"rope_theta": theta}, {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}):
        error = refused({**LLAMA, **fields})
        assert (error.what, error.found) == ("config.json: rope_theta is not a positive number", repr(theta))


LONG = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    ("settings", "what", "found"),
    [
        ({"type": "nosuch"}, "unknown rope_type", "'nosuch'"),
        ({"rope_type": ["yarn"]}, "unknown rope_type", "['yarn']"),
        ({"type": "linear"}, "rope settings of type linear lack factor", None),
        ({"type": "linear", "factor": "2"}, "factor of the rope settings is not a number", "'2'"),
        ({"type": "yarn", "factor": 2, "beta_fast": True}, "beta_fast of the rope settings is not a number", True),
        ({"type": "yarn", "factor": -2}, "factor of the rope settings is not a number", -2),
        ({**LONG, "long_factor": None}, "rope settings of type longrope lack long_factor", None),
        ({**LONG, "long_factor": [1.0, "x"]}, "long_factor of the rope settings is not a number", "[1.0, 'x']"),
        (
            {"type": "llama3", "factor": 8.0},
            "rope settings of type llama3 lack low_freq_factor, high_freq_factor, original_max_position_embeddings",
            None,
        ),
    ],
    ids=str,
)
def test_rope_settings_that_no_reader_can_use(settings: dict[str, Any], what: str, found: Any) -> None:
    error = refused({**LLAMA, "rope_scaling": settings})
    assert (error.what, error.found) == (f"config.json: {what}", found)


def test_original_length_must_be_a_number() -> None:
    error = refused({**LLAMA, "original_max_position_embeddings": "x\n" * 99})
    assert error.what == "config.json: original_max_position_embeddings of the rope settings is not a number"
    assert len(str(error.found)) == 60


def test_rope_types_are_those_of_transformers() -> None:
    """But one that no other reader has."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert {*TYPES} - {"default"} == {*ROPE_INIT_FUNCTIONS} - {"proportional", "default"}


def test_activations_are_those_of_transformers() -> None:
    from transformers.activations import ACT2FN

    assert set(ACTIVATIONS) == set(ACT2FN) - {"prelu", "xielu"}  # these two have parameters


@pytest.mark.parametrize("value", ["nosuch", ["silu"], 3, True])
def test_activations_that_nobody_knows(value: Any) -> None:
    assert f"hidden_act = {value!r}: expected a known activation" in refused({**LLAMA, "hidden_act": value}).what


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_rope_settings_must_be_an_object(name: str) -> None:
    error = refused({**LLAMA, name: "linear"})
    assert (error.what, error.found) == (f"config.json: {name} is not an object", "'linear'")


def test_the_length_before_scaling_is_carried_where_it_stood() -> None:
    result = target_config(pair_of("llama"), {**LLAMA, "original_max_position_embeddings": 4096})
    assert result["original_max_position_embeddings"] == 4096


def test_rules_are_of_the_known_kinds(pair: Pair) -> None:
    assert all(isinstance(rule, Rule) for rule in pair.fields.values())
