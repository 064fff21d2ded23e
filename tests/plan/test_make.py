"""Making a checkpoint from a plan that is no conversion: two directories are read, most of it is computed."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from upcycle.checkpoint.header import read_header
from upcycle.checkpoint.journal import Part
from upcycle.checkpoint.place import RECEIPT_FILE, staging_path
from upcycle.errors import CheckpointError, InputError
from upcycle.plan.account import account, parameters
from upcycle.plan.layout import lay_out
from upcycle.plan.make import Making, make, output_path, worker_count
from upcycle.plan.plan import Plan, Write
from upcycle.plan.receipt import receipt_bytes
from upcycle.plan.sources import Copy, LowRank, Scaled, Stacked

CONFIG = {
    "architectures": ["SomeForCausalLM"], "model_type": "some", "hidden_size": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 64, "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The attention as it is, two experts of a LoRA each in one tensor, and a shared one twice as large."""
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    generator = torch.Generator().manual_seed(0)
    base = {"attention": torch.randn(8, 8, generator=generator), "up": torch.randn(12, 8, generator=generator)}
    adapter = {f"{name}{n}": torch.randn(*shape, generator=generator)
               for n in range(2) for name, shape in (("a", (2, 8)), ("b", (12, 2)))}  # fmt: skip
    save_file(base, tmp_path / "base" / "model.safetensors")
    save_file(adapter, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    headers = [read_header(path) for path in sorted(tmp_path.glob("*/*.safetensors"))]
    specs = {name: spec for header in headers for name, spec in header.tensors.items()}
    experts = Stacked(tuple(LowRank(specs["up"], specs[f"a{n}"], specs[f"b{n}"], 0.5) for n in range(2)))
    writes = [
        Write("attention.weight", "F32", (8, 8), "attention", Copy(specs["attention"])),
        Write("experts.weight", "F32", (2, 12, 8), "experts", experts),
        Write("shared.weight", "F32", (12, 8), "shared", Scaled(specs["up"], 2.0)),
    ]
    return Plan(
        shards=lay_out(writes, 500),
        config=CONFIG,
        files={"tokenizer.json": tmp_path / "adapter" / "tokenizer.json"},
        sources={header.path.name: {"size": header.size, "header_sha256": header.sha256} for header in headers},
        active_experts=1,
        total_experts=2,
        layers=1,
        sparse_layers=1,
        cache_width=8,
        longest=64,
        hidden=8,
        width=12,
        vocabulary=16,
    )


@pytest.fixture
def making(tmp_path: Path) -> Making:
    return Making(tmp_path / "out", (tmp_path / "base", tmp_path / "adapter"), workers=2)


def carry_out(plan: Plan, making: Making, **hooks) -> tuple[str, ...]:
    def receipt(hashes: Mapping[str, str], files: Mapping[str, bytes]) -> bytes:
        return receipt_bytes(plan, record={"to": "x"}, source={"name": "base"}, hashes=hashes, side_files=files)

    return make(plan, making, receipt, lambda _: lambda _: None, **hooks)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_made_from_two_directories(plan: Plan, making: Making) -> None:
    assert carry_out(plan, making) == ()
    base = load_file(making.models[0] / "model.safetensors")
    adapter = load_file(making.models[1] / "adapter_model.safetensors")
    made = {name: t for path in making.out.glob("*.safetensors") for name, t in load_file(path).items()}
    assert torch.equal(made["attention.weight"], base["attention"])
    assert torch.equal(made["shared.weight"], 2 * base["up"])
    for n in range(2):
        expected = base["up"] + 0.5 * adapter[f"b{n}"] @ adapter[f"a{n}"]
        torch.testing.assert_close(made["experts.weight"][n], expected, rtol=1e-6, atol=1e-6)
    receipt = json.loads((making.out / RECEIPT_FILE).read_bytes())
    assert receipt["recipe"] == {"to": "x"}
    assert receipt["source"] == {"name": "base", "files": plan.sources}
    assert receipt["computed_sha256"].keys() == {"experts.weight", "shared.weight"}
    assert receipt["parameters"] == {"total": 64 + 192 + 96, "active": 64 + 96 + 96}
    assert (making.out / "tokenizer.json").read_text() == "{}"
    assert not staging_path(making.out).exists()


def test_parts_give_the_same_bytes(plan: Plan, making: Making, tmp_path: Path) -> None:
    carry_out(plan, making)
    parts = replace(making, out=tmp_path / "parts")
    assert carry_out(plan, replace(parts, part=Part(1, 2))) != ()
    assert carry_out(plan, replace(parts, part=Part(2, 2))) == ()
    assert contents(parts.out) == contents(making.out)


def test_what_is_complete_is_compared_and_left_alone(plan: Plan, making: Making) -> None:
    carry_out(plan, making)
    before = {path: path.stat().st_mtime_ns for path in making.out.iterdir()}
    assert carry_out(plan, replace(making, resume=True)) == ()
    assert {path: path.stat().st_mtime_ns for path in making.out.iterdir()} == before
    with pytest.raises(InputError):
        carry_out(plan, making)


def test_a_proof_sees_everything_and_what_it_refuses_is_removed(plan: Plan, making: Making) -> None:
    seen: list[set[str]] = []

    def refuse(staged: Path) -> None:
        seen.append(set(contents(staged)))
        raise InputError("computes something else")

    with pytest.raises(InputError, match="computes something else"):
        carry_out(plan, making, prove=refuse)
    assert seen[0] >= {"config.json", "tokenizer.json", RECEIPT_FILE, *(shard.name for shard in plan.shards)}
    assert not making.out.exists()
    assert not staging_path(making.out).exists()


def test_a_proof_that_is_cut_off_is_made_again(plan: Plan, making: Making) -> None:
    def stop(_staged: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        carry_out(plan, making, prove=stop)
    assert caught.value.__notes__ == [
        f"what is finished is kept in {staging_path(making.out)}, and --resume continues from it"
    ]
    assert not making.out.exists()
    proved: list[Path] = []
    assert carry_out(plan, replace(making, resume=True), prove=proved.append) == ()
    assert proved == [staging_path(making.out)]
    assert making.out.is_dir()


@pytest.mark.parametrize("inside", ["base", "adapter"])
def test_out_must_not_touch_what_is_read(plan: Plan, making: Making, tmp_path: Path, inside: str) -> None:
    with pytest.raises(InputError, match="overlap"):
        carry_out(plan, replace(making, out=tmp_path / inside / "out"))


def test_an_adapter_that_changes_meanwhile(plan: Plan, making: Making) -> None:
    file = making.models[1] / "adapter_model.safetensors"

    def change(_total: int):
        file.write_bytes(file.read_bytes())
        return lambda _: None

    with pytest.raises(CheckpointError, match="changed while the output was written"):
        make(plan, making, lambda *_: b"", change)


def test_an_account_counts_the_cache(plan: Plan) -> None:
    counted = account(plan, 2)
    # keys and values: 8 of each token, 64 tokens, 4 bytes; the weights: 352 values
    assert counted.run_memory == 8 * 64 * 4 + 352 * 4
    assert [part.role for part in counted.parts] == ["attention", "shared", "experts"]
    assert counted.computed == (192 + 96) * 4
    assert parameters(plan) == (counted.total, counted.active) == (352, 256)
    assert counted.reader_limits == ()


def test_workers_and_places() -> None:
    assert worker_count(3) == 3
    assert 1 <= worker_count() <= 8
    assert output_path("~/x") == Path.home() / "x"
    with pytest.raises(InputError, match="is no place for an output"):
        output_path("~nobody-of-that-name/x")
