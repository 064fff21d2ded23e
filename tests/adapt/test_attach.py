"""`upcycle attach`: what it writes, which model the adapter then belongs to, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.adapt.test_adapters import IDS, logits
from tests.conftest import contents, edit_json
from tests.hub.client import Client
from tests.hub.server import Hub
from tests.loras import save_lora
from tests.models import save_dense
from upcycle.adapters.load import attached
from upcycle.checkpoint.identity import fingerprint
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import InputError, RequestError, UnsupportedError
from upcycle.pipeline import stages
from upcycle.pipeline.locate import locate
from upcycle.requests import Attach, Generate, Merge, Train

SMALL: dict[str, Any] = {"experts": (4,), "rank": 8}


def attach(model: Path | str, out: Path, **fields: Any) -> Path:
    """Attach four experts of rank 8, or what takes no rank; return OUT."""
    ranked = fields.get("expert_type") != "ia3" and "from_lora" not in fields
    small = SMALL if ranked else {**SMALL, "rank": None}
    stages.attach(Attach(model=str(model), out=str(out), **{**small, **fields}))
    return out


def config_of(adapter: Path) -> dict[str, Any]:
    """adapter_config.json."""
    said: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    return said


def dense(directory: Path) -> Any:
    """The base in float32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


# What is written


@pytest.mark.parametrize("expert_type", ["lora", "bottleneck", "pesc", "ia3"])
def test_the_adapter_starts_as_its_base(variant: Path, expert_type: str, tmp_path: Path):
    out = attach(variant, tmp_path / "adapter", expert_type=expert_type, attention_rank=2)
    assert torch.equal(logits(attached(dense(variant), out).eval()), logits(dense(variant)))


def test_no_weight_of_the_base_is_read_but_its_samples(tiny: Path, tmp_path: Path):
    """The config, the headers and 512 bytes of each tensor decide all that is written."""
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    one, two = attach(tiny, tmp_path / "one"), attach(other, tmp_path / "two")
    assert (one / "adapter_model.safetensors").read_bytes() == (two / "adapter_model.safetensors").read_bytes()


def test_the_same_request_gives_the_same_bytes(tiny: Path, tmp_path: Path):
    assert contents(attach(tiny, tmp_path / "one")) == contents(attach(tiny, tmp_path / "two"))
    weights = (attach(tiny, tmp_path / "three", seed=1) / "adapter_model.safetensors").read_bytes()
    assert weights != (tmp_path / "one/adapter_model.safetensors").read_bytes()


def test_the_config_names_the_base_and_how_it_is_recognised(tiny: Path, tmp_path: Path):
    said = config_of(attach(tiny, tmp_path / "adapter", experts=(2, 4), routing="dense"))
    assert said["base_model_name_or_path"] == str(tiny.resolve())
    assert said["revision"] is None
    assert said["base_fingerprint"] == fingerprint(open_checkpoint(tiny))
    assert (said["num_experts"], said["routing"], said["scaling"]) == ([2, 4], "dense", 2.0)
    receipt = json.loads((tmp_path / "adapter/upcycle.json").read_text())
    assert receipt["made"] == "adapter"
    assert str(tmp_path) not in json.dumps(receipt)


def test_overwrite_replaces_what_attach_made_and_nothing_else(tiny: Path, tmp_path: Path):
    out = attach(tiny, tmp_path / "adapter")
    with pytest.raises(InputError, match="OUT is not empty"):
        attach(tiny, out)
    attach(tiny, out, seed=3, overwrite=True)
    (out / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match=r"did not make.*mine\.txt"):
        attach(tiny, out, overwrite=True)
    assert (out / "mine.txt").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_control_has_as_many_parameters(tmp_path: Path):
    result = stages.attach(Attach(model="demo:tiny", out=str(tmp_path / "experts"), attention_rank=4))
    control = stages.attach(
        Attach(model="demo:tiny", out=str(tmp_path / "single"), attention_rank=4, baseline="single-lora")
    )
    # a rank more or less is 4 layers x (3 x (128 + 352) = 1,440) = 5,760 parameters: the nearest is at most half away
    assert abs(result.parameters - control.parameters) <= 2880
    base = locate("demo:tiny")
    model = attached(dense(base), tmp_path / "single").eval()
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == control.parameters
    ids = IDS % 100
    assert torch.equal(logits(model, ids), logits(dense(base), ids))


# LoRAs as experts


def test_loras_become_experts_and_their_directions_the_router(tmp_path: Path):
    base = save_dense("llama", tmp_path / "base", dtype=torch.float32)
    loras = [save_lora(base, tmp_path / name, r=rank) for name, rank in (("a", 2), ("b", 4), ("c", 3))]
    out = attach(base, tmp_path / "out", experts=(), from_lora=tuple(map(str, loras)))
    said = config_of(out)
    assert (said["num_experts"], said["rank"], said["scaling"]) == ([3, 3], 4, 1.0)
    tensors = load_file(out / "adapter_model.safetensors")
    rows_ED = tensors["base_model.model.model.layers.0.mlp.upcycle_router.weight"]
    assert rows_ED.shape == (3, 32)
    torch.testing.assert_close(rows_ED.norm(dim=1), torch.ones(3))
    zeros = attach(base, tmp_path / "zeros", experts=(), from_lora=tuple(map(str, loras)), router="zeros", top_k=3)
    model = attached(dense(base), zeros).eval()
    # routers of zeros weigh three experts by a third each; with one alone that is the LoRA itself
    for name in [name for name in load_file(zeros / "adapter_model.safetensors") if "router" in name]:
        assert not load_file(zeros / "adapter_model.safetensors")[name].any()
    assert not torch.equal(logits(model), logits(dense(base)))


def test_one_lora_alone_computes_what_peft_makes_of_it(tmp_path: Path):
    base = save_dense("llama", tmp_path / "base", dtype=torch.float32)
    lora = save_lora(base, tmp_path / "lora", lora_alpha=12)
    same = attach(base, tmp_path / "out", experts=(), from_lora=(str(lora), str(lora)), router="zeros", routing="dense")
    expected = logits(attached(dense(base), lora).eval())  # a plain LoRA here, of peft
    found = logits(attached(dense(base), same).eval())
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_loras_that_cannot_be_experts(tiny: Path, tmp_path: Path):
    attention = save_lora(tiny, tmp_path / "qv", target_modules=["q_proj", "v_proj"])
    two, four = (save_lora(tiny, tmp_path / f"rank{rank}", r=rank) for rank in (2, 4))
    with pytest.raises(InputError, match=r"qv.*q_proj, v_proj"):
        attach(tiny, tmp_path / "out", experts=(), from_lora=(str(attention), str(two)))
    with pytest.raises(InputError, match=r"rank.*2.*4"):
        attach(tiny, tmp_path / "out", experts=(), from_lora=(str(two), str(four)), shared_a=True)
    with pytest.raises(
        RequestError, match=r"--experts does not go with the other options; found .3,., expected the 2 of --from-lora"
    ):
        attach(tiny, tmp_path / "out", experts=(3,), from_lora=(str(two), str(four)))
    assert not (tmp_path / "out").exists()


# Which model it belongs to


def other_weights(base: Path, directory: Path) -> Path:
    """A fine-tune: the same names and shapes, one matrix moved."""
    shutil.copytree(base, directory)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, path, metadata={"format": "pt"})
    return directory


def test_another_revision_of_the_base_is_refused(tiny: Path, text: Path, tmp_path: Path):
    adapter, other = attach(tiny, tmp_path / "adapter"), other_weights(tiny, tmp_path / "other")
    message = "is not the model that the adapter was made for: its weights differ.*fingerprint.*--base"
    requests = (
        Merge(adapter=str(adapter), out=str(tmp_path / "out"), base=str(other)),
        Generate(model=str(adapter), prompt="x", base=str(other)),
        Train(model=str(adapter), out=str(tmp_path / "out"), data=(str(text),), base=str(other)),
    )
    for request in requests:
        with pytest.raises(InputError, match=message):
            stages.run(request)
    assert not (tmp_path / "out").exists()


def test_a_base_that_moved_is_asked_for_and_named_by_base(tiny: Path, tmp_path: Path):
    here = Path(shutil.copytree(tiny, tmp_path / "here"))
    adapter = attach(here, tmp_path / "adapter")
    here.rename(tmp_path / "there")
    request = Merge(adapter=str(adapter), out=str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"the model of this adapter cannot be found.*--base names"):
        stages.run(request)
    moved = Merge(adapter=str(adapter), out=str(tmp_path / "out"), base=str(tmp_path / "there"))
    with pytest.raises(UnsupportedError, match="equal the base"):  # found, and untrained
        stages.run(moved)


def test_an_adapter_trained_on_a_base_that_moved_names_its_new_place(tmp_path: Path):
    base, there = locate("demo:tiny"), tmp_path / "there"
    adapter = attach("demo:tiny", tmp_path / "adapter")
    shutil.copytree(base, there)
    (tmp_path / "book.txt").write_text("In the beginning God created the heaven and the earth. " * 400)
    request = Train(
        model=str(adapter), out=str(tmp_path / "out"), data=(str(tmp_path / "book.txt"),), base=str(there), seq_len=32,
        batch_size=2, max_steps=1,
    )  # fmt: skip
    stages.run(request)
    assert config_of(tmp_path / "out") == {**config_of(adapter), "base_model_name_or_path": str(there.resolve())}
    assert config_of(adapter)["base_model_name_or_path"] == str(base.resolve())


def test_base_is_for_adapters(tiny: Path):
    with pytest.raises(InputError, match="--base is for adapters"):
        stages.run(Generate(model=str(tiny), prompt="x", base=str(tiny)))


def test_the_fingerprint_is_of_the_weights_wherever_they_lie(tiny: Path, tmp_path: Path):
    one = fingerprint(open_checkpoint(tiny))
    again = Path(shutil.copytree(tiny, tmp_path / "again"))
    edit_json(again / "config.json", use_cache=False)
    AutoModelForCausalLM.from_pretrained(tiny, dtype="auto").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert fingerprint(open_checkpoint(again)) == fingerprint(open_checkpoint(tmp_path / "shards")) == one
    assert fingerprint(open_checkpoint(other_weights(tiny, tmp_path / "other"))) != one


def test_a_base_on_the_hub_is_named_with_its_commit(tiny: Path, hub: Hub, client: Client, tmp_path: Path):
    repo = hub.repo("org/tiny", {path.name: path for path in tiny.iterdir()})
    done = client.warm().run("attach", "org/tiny", str(tmp_path / "adapter"), "--experts", "4")
    assert done.returncode == 0, done.stderr
    said = config_of(tmp_path / "adapter")
    assert said["base_model_name_or_path"] == "org/tiny"
    first = said["revision"]
    other = other_weights(tiny, tmp_path / "other")
    repo.commit({"model.safetensors": other / "model.safetensors"})
    merge = ("merge", str(tmp_path / "adapter"), str(tmp_path / "out"))
    done = client.warm().run(*merge)  # at its own commit the base is the right one
    assert "equal the base" in done.stderr
    done = client.warm().run(*merge, "--base", "org/tiny")
    assert "its weights differ" in done.stderr
    assert f"of org/tiny at revision {first}" in done.stderr


def test_an_adapter_on_the_hub(tiny: Path, hub: Hub, client: Client, tmp_path: Path):
    """As an expert, and as what is merged."""
    lora = save_lora(tiny, tmp_path / "lora")
    hub.repo("org/lora", {path.name: path for path in lora.iterdir()})
    words = ("--from-lora", "org/lora", "--from-lora", str(lora))
    done = client.warm().run("attach", str(tiny), str(tmp_path / "adapter"), *words)
    assert done.returncode == 0, done.stderr
    assert "2 experts in each of 2 layers" in done.stdout
    hub.repo("org/adapter", {path.name: path for path in (tmp_path / "adapter").iterdir()})
    done = client.warm().run("merge", "org/adapter", str(tmp_path / "out"), "--dtype", "f32")
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout


# What is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experts": (0,)}, "experts is out of range"),
        ({"experts": (4, 1)}, "top_k is out of range; found 2, expected 1 to 1, the experts of a layer"),
        ({"top_k": 1}, "the router would never learn.*--routing top1"),
        ({"rank": 0}, "rank is out of range"),
        ({"scaling": float("nan")}, "scaling is out of range"),
        ({"expert_type": "pesc", "shared_a": True}, "--shared-a does not go with .* expected --expert-type lora"),
        ({"expert_type": "ia3"}, "--rank does not go with .* found 8, expected none for ia3"),
        ({"router": "prototypes"}, "--router does not go with .* expected --from-lora"),
        ({"attention_deltas": "mean"}, "--attention-deltas does not go with .* expected --from-lora"),
        ({"from_lora": ("a", "b"), "experts": (), "rank": None, "scaling": 1.0}, "each LoRA has its own"),
        ({"from_lora": ("a", "b"), "experts": ()}, "--rank does not go with .* each LoRA has its own"),
        ({"from_lora": ("a", "b"), "experts": (), "expert_type": "pesc"}, "--from-lora .* expected --expert-type lora"),
    ],
)
def test_requests_that_make_no_sense(fields: dict[str, Any], message: str):
    with pytest.raises(RequestError, match=message):
        Attach(model="m", out="o", **{**SMALL, **fields})


def test_models_that_get_no_experts(tiny: Path, moe: Path, tmp_path: Path):
    with pytest.raises(InputError, match="at most one number for each of 2 layers"):
        attach(tiny, tmp_path / "out", experts=(2, 4, 6))
    with pytest.raises(UnsupportedError, match="mixture of experts already"):
        attach(moe, tmp_path / "out")
    with pytest.raises(InputError, match=r"grouped_mm.*--rank 12.*a multiple of 8.*--rank 16"):
        attach(tiny, tmp_path / "out", expert_type="bottleneck", rank=12)
    with pytest.raises(InputError, match="OUT and MODEL overlap"):
        attach(tiny, tiny / "inside")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


# Damaged adapters, whoever reads them


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_k": 9}, "damaged adapter config.*top_k 9"),
        ({"rank": "4"}, "damaged adapter config.*rank '4'"),
        ({"rank": 5}, "does not fit the adapter's config and the base"),
        ({"num_experts": [4, 4, 4]}, "the adapter is of another model; found 3 layers, expected 2"),
        ({"num_experts": "x"}, "damaged adapter config.*num_experts 'x'"),
        ({"scaling": 1e999}, "not a finite number|damaged adapter config|Infinity"),
        ({"ffn": {"block": "mlp", "gate": 5, "up": 6, "down": 7}}, "names other modules than the base has .ffn."),
        (
            {"ffn": {"block": "mlp", "gate": "mlp.up_proj", "up": "mlp.gate_proj", "down": "mlp.down_proj"}},
            "names other modules than the base has .ffn.",
        ),
        ({"peft_type": "PROMPT_TUNING"}, "of a kind that cannot be used here; found 'PROMPT_TUNING'"),
        ({"base_model_name_or_path": "../.."}, "the model of this adapter cannot be found"),
        ({"base_model_name_or_path": None}, "does not say which model it belongs to.*--base"),
    ],
)
def test_a_config_that_lies_is_told_by_every_command(
    tiny: Path, text: Path, changed: dict[str, Any], message: str, tmp_path: Path
):
    adapter = attach(tiny, tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", **changed)
    requests = (
        Merge(adapter=str(adapter), out=str(tmp_path / "out")),
        Generate(model=str(adapter), prompt="x"),
        Train(model=str(adapter), out=str(tmp_path / "out"), data=(str(text),)),
    )
    for request in requests:
        with pytest.raises(InputError, match=message):
            stages.run(request)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_patterns_of_a_plain_lora_are_not_matched(tiny: Path, field: str, tmp_path: Path):
    """peft would match `target_modules` against every module for as long as it takes."""
    bomb = r"(.*)*(.*)*(.*)*_projX|((\w+\.?)+)+!"
    lora = save_lora(tiny, tmp_path / "lora")
    edit_json(lora / "adapter_config.json", **{field: {bomb: 3} if "pattern" in field else bomb})
    with pytest.raises(InputError, match="holds a pattern of module names, which could take forever to match"):
        stages.run(Generate(model=str(lora), prompt="x"))
