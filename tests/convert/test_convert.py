"""Whole conversions of small models, held against transformers: the same function, the same bytes, honest refusals."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import contents, edit_json, request_fields, run_convert
from tests.models import MISTRAL_7B, save_dense, save_header
from upcycle.checkpoint.place import staging_path
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import InputError, RequestError, StagingError, UpcycleError
from upcycle.pipeline.stages import plan
from upcycle.requests import Convert, Plan

WEIGHTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def load(directory: Path) -> Any:
    """The model in float32; nothing may be missing, left over or newly made."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype=torch.float32)
    assert {name: keys for name, keys in info.items() if keys} == {}
    return model.eval()


def assert_same_function(dense: Path, moe: Path) -> None:
    """Logits on 40 random tokens within 1e-5 of the largest, and 20 tokens of greedy text alike."""
    ours, theirs = load(moe), load(dense)
    assert type(ours).__name__ == "MixtralForCausalLM"
    tokens_BT = torch.randint(0, 96, (1, 40), generator=torch.Generator().manual_seed(3))
    assert_same_logits(ours, theirs, tokens_BT)
    written, expected = (
        model.generate(tokens_BT[:, :8], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
        for model in (ours, theirs)
    )
    assert written.shape == (1, 28)
    assert torch.equal(written, expected)


def assert_same_logits(ours: Any, theirs: Any, tokens_BT: torch.Tensor) -> None:
    with torch.no_grad():
        ours_BTV, theirs_BTV = ours(tokens_BT).logits, theirs(tokens_BT).logits
    largest = theirs_BTV.abs().max()
    assert largest > 1, "logits too flat to tell two models apart"
    assert (ours_BTV - theirs_BTV).abs().max() <= 1e-5 * largest


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()
    }  # fmt: skip


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def refused(kind: type[UpcycleError], model: Path, out: Path, **fields: Any) -> Any:
    """The error of a conversion, which must have left nothing behind."""
    before = contents(out.parent)
    with pytest.raises(kind) as caught:
        run_convert(model, out, **fields)
    assert contents(out.parent) == before
    assert not staging_path(out).exists()
    return caught.value


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "moe"


# -- the same function ------------------------------------------------------------------------------------------------


def test_computes_what_the_dense_model_computes(variant: Path, out: Path) -> None:
    assert_same_function(variant, run_convert(variant, out))


def test_expert_bytes_are_those_of_the_dense_model(variant: Path, out: Path) -> None:
    dense, moe = tensors(variant), tensors(run_convert(variant, out))
    for layer in range(2):
        for expert in range(4):
            for target, source in WEIGHTS.items():
                mine = moe.pop(f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{target}.weight")
                assert raw(mine) == raw(dense[f"model.layers.{layer}.mlp.{source}.weight"])
        gate = moe.pop(f"model.layers.{layer}.block_sparse_moe.gate.weight")
        assert (gate.shape, gate.dtype) == ((4, 32), torch.bfloat16)
    assert set(moe) == {name for name in dense if ".mlp." not in name}
    assert all(raw(moe[name]) == raw(dense[name]) for name in moe)


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (2, 2), (3, 2), (16, 5)])
def test_any_number_of_experts(tiny: Path, out: Path, experts: int, top_k: int) -> None:
    run_convert(tiny, out, experts=experts, top_k=top_k, allow_dead_router=True)
    assert_same_function(tiny, out)
    config = json.loads((out / "config.json").read_bytes())
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (experts, top_k)


@pytest.mark.parametrize(
    ("variant_name", "changes"),
    [
        # Fields that the dense class ignores, or reads in its own way.
        ("llama", {"pretraining_tp": 2}),
        ("llama", {"rope_parameters": ..., "rope_theta": ...}),
        ("llama", {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 9e3}),
        ("llama", {"layer_types": ["full_attention"] * 2}),
        ("mistral", {"sliding_window": 5, "layer_types": None}),
        ("mistral_odd_head", {"is_decoder": True}),
    ],
    ids=str,
)
def test_fields_mean_what_they_mean_to_the_dense_class(
    dense: Callable[[str], Path],
    copy_of: Callable[[Path], Path],
    out: Path,
    variant_name: str,
    changes: dict[str, Any],
) -> None:
    model = copy_of(dense(variant_name))
    edit_json(model / "config.json", **changes)
    assert_same_function(model, run_convert(model, out))


def test_the_window_that_llama_ignores_is_left_out(tiny: Path, copy_of: Callable[[Path], Path], out: Path) -> None:
    """Logits only: the cache of transformers' `generate` obeys the window although the model does not."""
    model = copy_of(tiny)
    edit_json(model / "config.json", sliding_window=4, use_sliding_window=True, max_window_layers=1)
    run_convert(model, out)
    assert_same_logits(load(out), load(model), torch.arange(40)[None])
    assert "sliding_window" not in json.loads((out / "config.json").read_bytes())


def test_tied_head_that_is_stored_all_the_same(
    dense: Callable[[str], Path], copy_of: Callable[[Path], Path], out: Path
) -> None:
    model = copy_of(dense("llama_tied"))
    path = model / "model.safetensors"
    stored = load_file(path)
    save_file({**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()}, path)
    assert_same_function(model, run_convert(model, out))


def test_config_speaks_both_dialects(dense: Callable[[str], Path], out: Path) -> None:
    config = json.loads((run_convert(dense("llama_yarn"), out) / "config.json").read_bytes())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert config["rope_theta"] == 20000.0
    assert config["rope_parameters"] == {"rope_theta": 20000.0, **yarn}
    assert config["rope_scaling"] == yarn
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert (config["num_local_experts"], config["num_experts"], config["num_experts_per_tok"]) == (4, 4, 2)
    assert config["rms_norm_eps"] == 3e-5
    assert "transformers_version" not in config


# -- dtype, noise, routers --------------------------------------------------------------------------------------------


def test_cast_to_float32_is_exact(tiny: Path, out: Path) -> None:
    run_convert(tiny, out, dtype="f32")
    assert {tensor.dtype for tensor in tensors(out).values()} == {torch.float32}
    source = tensors(tiny)["model.norm.weight"]
    assert torch.equal(tensors(out)["model.norm.weight"], source.float())
    assert_same_function(tiny, out)
    assert json.loads((out / "upcycle.json").read_bytes())["exact"] is True


@pytest.mark.parametrize(("word", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)])
def test_cast_is_torchs(tmp_path: Path, out: Path, word: str, dtype: torch.dtype) -> None:
    model = save_dense("mistral", tmp_path / "dense", dtype=torch.float32)
    dense, moe = tensors(model), tensors(run_convert(model, out, dtype=word))
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.weight", "lm_head.weight"):
        assert raw(moe[name]) == raw(dense[name].to(dtype))
    expert = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    assert raw(moe[expert]) == raw(dense["model.layers.0.mlp.down_proj.weight"].to(dtype))
    assert json.loads((out / "upcycle.json").read_bytes())["exact"] is (word == "f32")
    assert json.loads((out / "config.json").read_bytes())["dtype"] == str(dtype).removeprefix("torch.")


def test_mixed_dtypes_are_kept(tiny: Path, copy_of: Callable[[Path], Path], out: Path) -> None:
    path = copy_of(tiny) / "model.safetensors"
    stored = {name: tensor.float() if "norm" in name else tensor for name, tensor in load_file(path).items()}
    save_file(stored, path)
    made = tensors(run_convert(path.parent, out))
    assert made["model.norm.weight"].dtype == torch.float32
    assert made["model.layers.0.block_sparse_moe.gate.weight"].dtype == torch.bfloat16  # as most of the bytes
    assert all(raw(made[name]) == raw(tensor) for name, tensor in stored.items() if ".mlp." not in name)


def test_a_cast_that_overflows_is_refused(tiny: Path, copy_of: Callable[[Path], Path], out: Path) -> None:
    path = copy_of(tiny) / "model.safetensors"
    stored = load_file(path)
    stored["model.layers.1.mlp.up_proj.weight"][7, 7] = 1e5  # in bfloat16 99840
    save_file(stored, path)
    error = refused(InputError, path.parent, out, dtype="f16")
    assert error.what.startswith("tensor 'model.layers.1.block_sparse_moe.experts.")
    assert error.what.endswith(".w3.weight' does not fit F16")
    assert (error.found, error.hint) == ("a value of 9.98e+04", "--dtype bf16 has the range of float32")


@pytest.mark.parametrize(
    "fields", [{"router_std": 1e300}, {"router_std": 1e5, "dtype": "f16"}, {"noise": 1e300}], ids=str
)
def test_what_is_drawn_must_be_finite(tiny: Path, out: Path, fields: dict[str, Any]) -> None:
    assert "does not fit" in refused(InputError, tiny, out, **fields).what


def test_noise_makes_experts_differ_by_as_much_as_asked(tiny: Path, out: Path) -> None:
    run_convert(tiny, out, noise=0.1, dtype="f32")
    dense, moe = tensors(tiny), tensors(out)
    seen = set()
    for layer in range(2):
        for expert in range(4):
            for target, source in WEIGHTS.items():
                original = dense[f"model.layers.{layer}.mlp.{source}.weight"].float()
                made = moe[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{target}.weight"]
                seen.add(raw(made))
                # The standard error of a standard deviation from 1536 draws is 1/sqrt(2 * 1536) = 1.8%; 5 of them.
                assert float((made - original).std() / original.std()) == pytest.approx(0.1, rel=0.09)
    assert len(seen) == 2 * 4 * 3
    assert json.loads((out / "upcycle.json").read_bytes())["exact"] is False
    assert raw(moe["model.norm.weight"]) == raw(dense["model.norm.weight"].float())
    load(out)


def test_routers_are_drawn_as_asked(tiny: Path, out: Path) -> None:
    run_convert(tiny, out, experts=64, router_std=0.5, dtype="f32")
    gates = [tensors(out)[f"model.layers.{layer}.block_sparse_moe.gate.weight"] for layer in range(2)]
    for gate in gates:
        # 64 * 32 = 2048 draws: standard error of the mean 0.5/45 = 0.011, of the deviation 0.5/64 = 0.008; 5 of them.
        assert abs(float(gate.mean())) < 0.055
        assert float(gate.std()) == pytest.approx(0.5, abs=0.04)
    assert not torch.equal(*gates)


@pytest.mark.parametrize("fields", [{"router": "zeros"}, {"router_std": 0.0}], ids=str)
def test_routers_of_zeros(tiny: Path, out: Path, fields: dict[str, Any]) -> None:
    run_convert(tiny, out, **fields)
    assert not any(tensors(out)[f"model.layers.{layer}.block_sparse_moe.gate.weight"].any() for layer in range(2))
    assert_same_function(tiny, out)


def test_zeros_come_with_a_warning(tiny: Path) -> None:
    assert plan(Plan(model=str(tiny), router="zeros", **request_fields())).warnings == (
        "routers of zeros tie on every token, and ties go to the first experts: the others stay unused until a "
        "balance loss moves the router",
    )
    assert plan(Plan(model=str(tiny), router="zeros", **request_fields(experts=2))).warnings == ()
    assert plan(Plan(model=str(tiny), **request_fields())).warnings == ()


def test_the_seed_decides(tiny: Path, tmp_path: Path) -> None:
    zero, same, one = (run_convert(tiny, tmp_path / str(n), seed=seed) for n, seed in enumerate((0, 0, 1)))
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    assert raw(tensors(zero)[gate]) == raw(tensors(same)[gate]) != raw(tensors(one)[gate])


def test_one_expert_per_token_is_refused(tiny: Path, out: Path) -> None:
    error = refused(RequestError, tiny, out, top_k=1)
    assert str(error) == (
        "the router would never learn: mixtral divides the weights of the chosen experts by their sum, so with one "
        "expert per token the weight is 1 whatever the router says, and its gradient is zero; found --top-k 1, "
        "expected --top-k 2 or more; --allow-dead-router converts all the same"
    )
    assert_same_function(tiny, run_convert(tiny, out, top_k=1, allow_dead_router=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experts": 0}, "experts is out of range; found 0, expected 1 to 65536; set it with --experts"),
        ({"experts": 65537}, "experts is out of range; found 65537, expected 1 to 65536; set it with --experts"),
        ({"top_k": 5}, "top_k is out of range; found 5, expected 1 to the 4 experts; set it with --top-k"),
        ({"top_k": 0}, "top_k is out of range; found 0, expected 1 to the 4 experts; set it with --top-k"),
        (
            {"noise": -0.1},
            "noise is out of range; found -0.1, expected a finite number, 0 or more; set it with --noise",
        ),
        (
            {"router_std": float("nan")},
            "router_std is out of range; found nan, expected a finite number, 0 or more; set it with --router-std",
        ),
        (
            {"max_shard_size": "5 apples"},
            "max_shard_size is out of range; found 5 apples, expected a size such as 500MB or 5GB; "
            "set it with --max-shard-size",
        ),
        ({"workers": -1}, "workers is out of range; found -1, expected 0 to 1024; set it with --workers"),
    ],
    ids=str,
)
def test_requests_that_make_no_sense(tiny: Path, out: Path, fields: dict[str, Any], message: str) -> None:
    assert str(refused(RequestError, tiny, out, **fields)) == message


# -- the same bytes ---------------------------------------------------------------------------------------------------


def test_a_second_run_gives_the_same_directory(variant: Path, tmp_path: Path) -> None:
    one, two = (run_convert(variant, tmp_path / name, noise=0.01, workers=n) for name, n in (("a", 1), ("b", 7)))
    assert contents(one) == contents(two)
    assert set(contents(one)) >= {"config.json", "generation_config.json", "model.safetensors", "upcycle.json"}


def test_the_place_of_the_source_does_not_matter(tiny: Path, copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    moved = shutil.move(copy_of(tiny), tmp_path / "elsewhere" / tiny.name)
    assert contents(run_convert(tiny, tmp_path / "a")) == contents(run_convert(Path(moved), tmp_path / "b"))


def test_tensors_do_not_depend_on_the_shard_size(tiny: Path, tmp_path: Path) -> None:
    one, many = run_convert(tiny, tmp_path / "one", noise=0.1), tmp_path / "many"
    run_convert(tiny, many, noise=0.1, max_shard_size="20KB")
    assert len(list(one.glob("*.safetensors"))) == 1
    assert len(list(many.glob("*.safetensors"))) > 5
    left, right = tensors(one), tensors(many)
    assert {name: raw(tensor) for name, tensor in left.items()} == {n: raw(tensor) for n, tensor in right.items()}


def test_more_experts_leave_the_first_ones_as_they_were(tiny: Path, tmp_path: Path) -> None:
    few, many = (tensors(run_convert(tiny, tmp_path / str(n), experts=n, noise=0.1)) for n in (4, 8))
    shared = [name for name in few if ".experts." in name]
    assert len(shared) == 2 * 4 * 3
    assert all(raw(few[name]) == raw(many[name]) for name in shared)


def test_sharded_output(tiny: Path, out: Path) -> None:
    run_convert(tiny, out, max_shard_size="20KB")
    index = json.loads((out / "model.safetensors.index.json").read_bytes())
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    count = len(shards)
    assert shards == [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    assert index["weight_map"] == {
        name: shard for shard in shards for name in sorted(load_file(out / shard))
    }  # fmt: skip
    assert index["metadata"] == {"total_size": sum(t.numel() * t.element_size() for t in tensors(out).values())}
    assert_same_function(tiny, out)


@pytest.mark.parametrize("name", ["llama", "mistral_tied"])
def test_sharded_input(tmp_path: Path, out: Path, name: str) -> None:
    single = save_dense(name, tmp_path / "single")
    sharded = save_dense(name, tmp_path / "sharded", max_shard_size="15KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    run_convert(sharded, out)
    assert_same_function(single, out)
    assert len(json.loads((out / "upcycle.json").read_bytes())["source"]["files"]) > 2


def test_nothing_in_the_output_tells_when_or_where(tiny: Path, out: Path) -> None:
    run_convert(tiny, out)
    for name, data in contents(out).items():
        assert str(tiny.parent).encode() not in data, name
        assert str(out.parent).encode() not in data, name


# -- the receipt ------------------------------------------------------------------------------------------------------


def test_receipt(tiny: Path, out: Path) -> None:
    run_convert(tiny, out, seed=5, workers=2, allow_dead_router=True)
    receipt = json.loads((out / "upcycle.json").read_bytes())
    header = open_checkpoint(tiny).headers["model.safetensors"]
    asked = plan(Plan(model=str(tiny), seed=5, **request_fields()))
    assert receipt == {
        "upcycle": 1,
        "versions": receipt["versions"],
        "recipe": {
            "model": tiny.name, "experts": 4, "top_k": 2, "method": "copy", "noise": 0.0, "router": "normal",
            "router_std": 0.02, "seed": 5, "dtype": "keep", "max_shard_size": "5GB", "tokenizer": None,
            "chat_template": None, "ignore_config": [],
        },
        "exact": True,
        # V 96, D 32, F 48, K 16, 2 layers: embeddings and head 2 * 96 * 32 = 6144, attention 2 * (2 * 32 * 32 +
        # 2 * 16 * 32) = 6144, norms 5 * 32 = 160, routers 2 * 4 * 32 = 256, an expert 3 * 48 * 32 = 4608 per layer:
        # 12704 + 2 * 4 * 4608 = 49568 in all, 12704 + 2 * 2 * 4608 = 31136 for a token.
        "parameters": {"total": 49568, "active": 31136},
        "plan": asked.plan.hash,
        "source": {
            "name": tiny.name,
            "revision": None,
            "etags": {},
            "files": {"model.safetensors": {"size": header.size, "header_sha256": header.sha256}},
        },
        "files": {
            "model.safetensors": open_checkpoint(out).headers["model.safetensors"].sha256,
            **{
                name: hashlib.sha256((out / name).read_bytes()).hexdigest()
                for name in ("config.json", "generation_config.json")
            },
        },
        "computed_sha256": {
            name: hashlib.sha256(raw(tensor)).hexdigest()
            for name, tensor in tensors(out).items()
            if name.endswith("gate.weight")
        },
    }  # fmt: skip
    assert set(receipt["versions"]) == {"upcycle", "numpy"}
    assert len(receipt["computed_sha256"]) == 2


def test_receipt_hashes_everything_that_was_computed(tiny: Path, out: Path) -> None:
    run_convert(tiny, out, noise=0.1)
    hashes = json.loads((out / "upcycle.json").read_bytes())["computed_sha256"]
    made = tensors(out)
    assert set(hashes) == {name for name in made if "block_sparse_moe" in name}
    assert all(hashlib.sha256(raw(made[name])).hexdigest() == digest for name, digest in hashes.items())


def test_receipt_of_a_model_from_the_hub(tiny: Path, tmp_path: Path) -> None:
    entry = tmp_path / "models--some-org--some-model"
    snapshot, blobs = entry / "snapshots" / "0123abcd", entry / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in tiny.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blobs / digest)
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    receipt = json.loads((run_convert(snapshot, tmp_path / "moe") / "upcycle.json").read_bytes())
    weights = hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()
    assert receipt["recipe"]["model"] == receipt["source"]["name"] == "some-org/some-model"
    assert receipt["source"]["revision"] == "0123abcd"
    assert receipt["source"]["etags"] == {"model.safetensors": weights}
    assert not any(path.is_symlink() for path in (tmp_path / "moe").iterdir())


# -- side files -------------------------------------------------------------------------------------------------------

TOKENIZER = {
    "tokenizer.json": b'{"version": "1.0",\r\n "unusual":\t"\xc3\xa4\\u00e4"}',
    "tokenizer_config.json": b'{"chat_template": "old"}',
    "tokenizer.model": bytes(range(256)),
    "special_tokens_map.json": b"{}  ",
    "chat_template.jinja": b"{{ messages }}\n\n",
}


@pytest.fixture
def with_tokenizer(tiny: Path, copy_of: Callable[[Path], Path]) -> Path:
    model = copy_of(tiny)
    for name, data in TOKENIZER.items():
        (model / name).write_bytes(data)
    return model


def test_tokenizer_files_are_copied_byte_for_byte(with_tokenizer: Path, out: Path) -> None:
    (with_tokenizer / "README.md").write_text("not for the output")
    (with_tokenizer / "modeling_own.py").write_text("nor this")
    made = contents(run_convert(with_tokenizer, out))
    assert {name: made[name] for name in TOKENIZER} == TOKENIZER
    assert made["generation_config.json"] == (with_tokenizer / "generation_config.json").read_bytes()
    assert set(made) == {
        *TOKENIZER, "config.json", "generation_config.json", "model.safetensors", "upcycle.json",
    }  # fmt: skip


def test_another_tokenizer(with_tokenizer: Path, tmp_path: Path, out: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_bytes(b"[1]")
    (other / "generation_config.json").write_bytes(b"{}")
    made = contents(run_convert(with_tokenizer, out, tokenizer=str(other)))
    assert set(made) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "upcycle.json",
    }  # fmt: skip
    assert made["tokenizer.json"] == b"[1]"
    assert made["generation_config.json"] == (with_tokenizer / "generation_config.json").read_bytes()
    assert json.loads(made["upcycle.json"])["recipe"]["tokenizer"] == "other"


def test_another_chat_template(with_tokenizer: Path, tmp_path: Path, out: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_bytes(b"{{ mine }}\r\n")
    (with_tokenizer / "chat_template.json").write_bytes(b"{}")
    made = contents(run_convert(with_tokenizer, out, chat_template=str(template)))
    assert made["chat_template.jinja"] == b"{{ mine }}\r\n"
    assert "chat_template.json" not in made
    assert made["tokenizer.json"] == TOKENIZER["tokenizer.json"]


def test_no_tokenizer_there(tiny: Path, tmp_path: Path, out: Path) -> None:
    error = refused(InputError, tiny, out, tokenizer=str(tmp_path))
    assert (error.what, error.where) == ("holds no tokenizer", str(tmp_path))
    assert error.expected == "tokenizer.json or tokenizer_config.json or tokenizer.model"


def test_no_chat_template_there(tiny: Path, out: Path) -> None:
    error = refused(InputError, tiny, out, chat_template="nowhere.jinja")
    assert str(error) == "nowhere.jinja: no such file; --chat-template names a Jinja file"


def test_broken_side_file(with_tokenizer: Path, out: Path) -> None:
    (with_tokenizer / "tokenizer.json").write_bytes(b'{"cut')
    error = refused(InputError, with_tokenizer, out)
    assert error.what.startswith("not valid JSON (")
    assert error.where == str(with_tokenizer / "tokenizer.json")


# -- OUT --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "inside", "inside/deeper", ".."])
def test_out_and_model_must_be_apart(tiny: Path, copy_of: Callable[[Path], Path], place: str) -> None:
    model = copy_of(tiny)
    before = contents(model.parent)
    for out in (model / place, (model / place).resolve()):
        if out.name != "..":  # refused for its name, below
            with pytest.raises(InputError) as caught:
                run_convert(model, out, overwrite=True)
            assert (caught.value.what, caught.value.where) == ("OUT and MODEL overlap", str(out))
            assert caught.value.hint == "write to a directory outside the model"
    assert contents(model.parent) == before


def test_out_and_model_must_be_apart_through_a_link(tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    model = copy_of(tiny)
    link = model.parent / "link"
    link.symlink_to(model)
    for out in (link, link / "inside"):
        with pytest.raises(InputError) as caught:
            run_convert(model, out, overwrite=True)
        assert caught.value.what == "OUT and MODEL overlap"


def test_the_model_may_not_stand_where_the_work_is_staged(tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    model = copy_of(tiny).rename(tiny.parent / "m.partial")
    before = contents(model)
    for overwrite in (False, True):
        with pytest.raises(InputError) as caught:
            run_convert(model, model.with_name("m"), overwrite=overwrite)
        assert caught.value.what == "OUT and MODEL overlap"
    assert contents(model) == before
    shutil.rmtree(model)


@pytest.mark.parametrize("name", [".", "..", "/", "deeper/..", "moe.partial"])
def test_out_needs_a_name_of_its_own(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        run_convert(tiny, Path(name), overwrite=True)
    assert (caught.value.what, caught.value.expected) == (
        "OUT cannot have this name", "a name of its own, without .partial at its end",
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_out_is_a_file(tiny: Path, out: Path) -> None:
    out.write_text("precious")
    for overwrite in (False, True):
        error = refused(InputError, tiny, out, overwrite=overwrite)
        assert str(error) == f"{out}: OUT is not a directory; choose another OUT"


def test_out_is_a_link(tiny: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    out.symlink_to("elsewhere")
    assert refused(InputError, tiny, out, overwrite=True).what == "OUT is not a directory"


def test_out_is_not_empty(tiny: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    error = refused(InputError, tiny, out)
    assert str(error) == f"{out}: OUT is not empty; --overwrite replaces it when the new one is complete"
    error = refused(InputError, tiny, out, overwrite=True)
    assert str(error) == (
        f"{out}: OUT holds what upcycle did not make, so --overwrite leaves it alone; found no upcycle.json; "
        "remove it yourself or choose another OUT"
    )


def test_out_is_empty(tiny: Path, out: Path) -> None:
    out.mkdir()
    assert (run_convert(tiny, out) / "upcycle.json").is_file()


def test_out_lies_in_directories_yet_to_be_made(tiny: Path, out: Path) -> None:
    assert (run_convert(tiny, out / "a" / "b") / "upcycle.json").is_file()


def test_overwrite_replaces_all_of_the_old_output(tiny: Path, tmp_path: Path, out: Path) -> None:
    run_convert(tiny, out, max_shard_size="20KB")
    (out / "notes.txt").write_text("precious")
    assert refused(InputError, tiny, out).what == "OUT is not empty"
    assert refused(InputError, tiny, out, overwrite=True).found == "notes.txt"
    (out / "notes.txt").unlink()
    run_convert(tiny, out, overwrite=True, seed=1)
    assert contents(out) == contents(run_convert(tiny, tmp_path / "fresh", seed=1))
    assert {path.name for path in tmp_path.iterdir()} == {"moe", "fresh"}


def test_the_old_output_survives_a_refusal(tiny: Path, copy_of: Callable[[Path], Path], out: Path) -> None:
    run_convert(tiny, out)
    for fields in ({"top_k": 1}, {"tokenizer": "nowhere"}, {"dtype": "f16", "router_std": 1e5}, {"router_std": 1e300}):
        refused(InputError, tiny, out, overwrite=True, **fields)
    broken = copy_of(tiny)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-1])
    refused(InputError, broken, out, overwrite=True)


def test_a_foreign_directory_where_the_work_is_staged(tiny: Path, out: Path) -> None:
    foreign = staging_path(out)
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("precious")
    for fields in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError) as caught:
            run_convert(tiny, out, **fields)
        assert str(caught.value) == (
            f"{foreign}: is in the way and is no unfinished output; move it away or choose another OUT"
        )
    assert contents(out.parent) == {"moe.partial/thesis.tex": b"precious"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_out_that_fills_up_meanwhile_is_left_alone(tiny: Path, out: Path, overwrite: bool) -> None:
    from upcycle.convert.convert import convert

    def someone_else_writes(_plan: Any) -> Callable[[int], None]:
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
        return lambda _: None

    request = Convert(model=str(tiny), out=str(out), overwrite=overwrite, **request_fields())
    with pytest.raises(StagingError) as caught:
        convert(tiny, request, someone_else_writes)
    assert str(caught.value).endswith(f"; what is finished is kept in {staging_path(out)}")
    assert contents(out) == {"thesis.tex": b"precious"}
    shutil.rmtree(out)
    assert (run_convert(tiny, out, resume=True) / "upcycle.json").is_file()
    assert not staging_path(out).exists()


def test_full_disk_is_refused_before_writing(tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    needed = plan(Plan(model=str(tiny), **request_fields())).plan.bytes_written
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, needed - 1))
    error = refused(StagingError, tiny, out)
    assert str(error) == (
        f"{out.parent}: not enough space; found {(needed - 1) / 1e9:.2f} GB free, expected {needed / 1e9:.2f} GB; "
        "choose an OUT on another disk"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, needed))
    run_convert(tiny, out)


def test_nothing_is_written_into_the_model(tiny: Path, copy_of: Callable[[Path], Path], out: Path) -> None:
    model = copy_of(tiny)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in model.iterdir()}
    run_convert(model, out)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in model.iterdir()} == before


# -- what is imported, and figures ------------------------------------------------------------------------------------


def loaded_modules(*words: str) -> set[str]:
    """The top-level modules that a command has loaded when it ends."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('MODULES', *{name.partition('.')[0] for name in sys.modules}))\n"
        "from upcycle.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("MODULES"))
    return set(line.split()[1:])


HEAVY = {"torch", "transformers", "huggingface_hub", "safetensors", "peft", "accelerate"}


def test_plan_imports_neither_torch_nor_numpy(tiny: Path) -> None:
    modules = loaded_modules("plan", str(tiny), "--experts", "4")
    assert "upcycle" in modules
    assert modules & (HEAVY | {"numpy"}) == set()


@pytest.mark.parametrize("words", [(), ("--router", "zeros"), ("--noise", "0.1"), ("--dtype", "f32")], ids=str)
def test_convert_never_imports_torch(tiny: Path, out: Path, words: tuple[str, ...]) -> None:
    assert loaded_modules("convert", str(tiny), str(out), "--experts", "4", *words) & HEAVY == set()
    assert (out / "upcycle.json").is_file()


def test_dry_run_writes_nothing(tiny: Path, out: Path) -> None:
    code = "from upcycle.cli.main import main; main()"
    command = [sys.executable, "-c", code, "convert", str(tiny), str(out), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "expert paths" in done.stdout
    assert list(out.parent.iterdir()) == []


def test_figures_of_mistral_7b(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_header(MISTRAL_7B, tmp_path))
    assert sum(spec.elements for spec in checkpoint.tensors.values()) == 7_241_732_096
    drafted = plan(Plan(model=str(tmp_path), experts=8, top_k=2))
    # An expert has 3 * 4096 * 14336 = 176,160,768 parameters; 32 layers of 8 make 45,097,156,608. The rest of the
    # dense model is 7,241,732,096 - 32 * 176,160,768 = 1,604,587,520, the routers 32 * 8 * 4096 = 1,048,576.
    assert drafted.account.total == 45_097_156_608 + 1_604_587_520 + 1_048_576 == 46_702_792_704
    # Two experts of eight: 11,274,289,152.
    assert drafted.account.active == 11_274_289_152 + 1_604_587_520 + 1_048_576 == 12_879_925_248
    assert {part.role: part.tensors for part in drafted.account.parts} == {
        "embeddings": 1, "attention": 128, "router": 32, "experts": 768, "norms": 65, "head": 1,
    }  # fmt: skip
    assert drafted.account.paths == (28, 32)  # 8 * 7 / 2 pairs
    assert drafted.account.exact
    assert drafted.plan.bytes_written == drafted.account.disk
    assert sum(part.nbytes for part in drafted.account.parts) == 2 * 46_702_792_704
    assert drafted.account.computed == 2 * 1_048_576
    assert drafted.account.train_full_memory == 16 * 46_702_792_704
    # Weights, and 4096 tokens of 32 layers * 2 * 8 heads * 128 values of 2 bytes.
    assert drafted.account.run_memory == 2 * 46_702_792_704 + 4096 * 32 * 2 * 8 * 128 * 2
