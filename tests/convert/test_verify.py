"""`upcycle verify`: what it proves, what it notices, and that its figures are stock transformers' own."""

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.drawn_adapters import draw_adapter
from tests.merging import run_merge
from tests.models import SMALL, save_dense
from upcycle.checkpoint.header import read_header
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.convert import plain
from upcycle.convert.parity import run_both
from upcycle.errors import CheckpointError, InputError
from upcycle.families.find import find_pairs
from upcycle.moe.clean_run import CleanRun
from upcycle.moe.load import LayerCall
from upcycle.moe.memory import memory_needed
from upcycle.moe.probe import LEARNING_RATE, probe_layer
from upcycle.pipeline.stages import convert, verify
from upcycle.plan.report import Report
from upcycle.requests import Convert, Verify
from upcycle.text.read import random_ids

Converted = Callable[..., Path]


@pytest.fixture
def converted(tmp_path: Path) -> Converted:
    """Return a function that converts a dense directory to 4 experts, top-2, and returns the output."""

    def make(dense: Path | str, name: str = "moe", **options: Any) -> Path:
        out = tmp_path / name
        convert(Convert(model=str(dense), out=str(out), **{"experts": 4, "top_k": 2, **options}))
        return out

    return make


@pytest.fixture(autouse=True)
def _one_process(request: pytest.FixtureRequest) -> None:
    """Only where that is what is tested."""
    if "plain" not in request.node.name:
        request.getfixturevalue("no_second_process")


def check(dense: Path, moe: Path, **options: Any) -> Report:
    return verify(Verify(dense=str(dense), moe=str(moe), **options))


def verdicts(report: Report) -> dict[str, str]:
    return {line.name: line.verdict for line in report.lines}


def text_of(report: Report, name: str) -> str:
    return next(line.text for line in report.lines if line.name == name)


def flip_byte(moe: Path, tensor: str, index: int) -> None:
    spec = read_header(moe / "model.safetensors").tensors[tensor]
    with spec.path.open("r+b") as file:
        file.seek(spec.offset + index)
        byte = file.read(1)
        file.seek(spec.offset + index)
        file.write(bytes([byte[0] ^ 1]))


def test_every_variant_is_verified(variant: Path, converted: Converted) -> None:
    report = check(variant, converted(variant))
    assert report.passed, report.lines
    assert report.figures["parity"]["relative"] <= 1e-5
    assert report.figures["parity"]["agreement"] == 1.0
    assert "zero by construction at step 0" in text_of(report, "router gradient")


def test_sharded_cast_and_single_expert_outputs_are_verified(tiny: Path, converted: Converted) -> None:
    cases: dict[str, dict[str, Any]] = {
        "sharded": {"max_shard_size": "20KB"},
        "wide": {"dtype": "f32"},
        "one": {"experts": 1, "top_k": 1, "allow_dead_router": True},
    }
    for name, options in cases.items():
        assert check(tiny, converted(tiny, name, **options)).passed, name


def test_an_inexact_method_is_told_but_not_failed(tiny: Path, converted: Converted) -> None:
    report = check(tiny, converted(tiny, noise=0.5))
    assert report.passed
    assert verdicts(report)["logits"] == "note"
    assert text_of(report, "function").startswith("not the same (the experts have noise of 0.5 of each matrix's")
    assert report.figures["parity"]["relative"] > 1e-3
    assert "zero by construction" not in text_of(report, "router gradient")


def test_a_dead_router_is_named(tiny: Path, converted: Converted) -> None:
    report = check(tiny, converted(tiny, top_k=1, allow_dead_router=True))
    assert text_of(report, "router gradient").endswith("these routers never learn")
    assert verdicts(report)["router gradient"] == "note"


def test_dead_experts_are_counted(tiny: Path, converted: Converted) -> None:
    # Zero routers tie, and ties go to the first two of four experts: 2 unused in each of 2 layers.
    report = check(tiny, converted(tiny, router="zeros"))
    assert "4 of 8 experts are dead on this text" in text_of(report, "expert load")
    assert "busiest expert 2 times an even share" in text_of(report, "expert load")
    assert "the chosen experts move alike" in text_of(report, "router gradient")


@pytest.mark.parametrize("index", [0, 777, 48 * 32 * 2 - 1])
def test_one_flipped_bit_in_a_copy_is_found(tiny: Path, converted: Converted, index: int) -> None:
    moe = converted(tiny)
    name = "model.layers.1.block_sparse_moe.experts.3.w3.weight"
    flip_byte(moe, name, index)
    report = check(tiny, moe)
    assert not report.passed
    found = f"1 differ: {name}: differs from model.layers.1.mlp.up_proj.weight at byte {index}"
    assert text_of(report, "tensors") == found
    assert "logits" not in verdicts(report)  # nothing is run on tensors that are wrong


def test_a_changed_router_is_found_by_its_hash(tiny: Path, converted: Converted) -> None:
    moe = converted(tiny)
    flip_byte(moe, "model.layers.0.block_sparse_moe.gate.weight", 5)
    assert "model.layers.0.block_sparse_moe.gate.weight: SHA-256" in text_of(check(tiny, moe), "tensors")


def test_a_forged_hash_does_not_help(tiny: Path, converted: Converted) -> None:
    """Routers of another seed, with their own hashes in the receipt: only another NumPy would excuse them."""
    moe, other = converted(tiny), converted(tiny, "other", seed=1)
    path = moe / "upcycle.json"
    receipt, foreign = json.loads(path.read_text()), json.loads((other / "upcycle.json").read_text())
    receipt["computed_sha256"] = foreign["computed_sha256"]
    path.write_text(json.dumps(receipt))
    (moe / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    report = check(tiny, moe)
    assert "has the receipt's hash, but is not what its recipe gives" in text_of(report, "tensors")
    assert not report.passed
    receipt["versions"]["numpy"] = "0.1"
    path.write_text(json.dumps(receipt))
    report = check(tiny, moe)
    assert verdicts(report)["redrawn tensors"] == "note"
    assert report.figures["tensors"]["computed"] == 0
    assert report.passed


def test_a_fine_tune_of_the_dense_model_is_not_taken_for_it(tmp_path: Path, converted: Converted) -> None:
    """Same headers, other values: found although the experts are computed, not copied."""
    one = save_dense("llama", tmp_path / "one", dtype=torch.float32)
    moe = converted(one, dtype="bf16")
    tensors = load_file(one / "model.safetensors")
    tuned = save_dense("llama", tmp_path / "tuned", dtype=torch.float32)
    save_file({name: value * 1.01 for name, value in tensors.items()}, tuned / "model.safetensors", {"format": "pt"})
    report = check(one, moe)
    assert report.passed
    assert "(values are rounded to BF16)" in text_of(report, "function")
    report = check(tuned, moe)
    assert verdicts(report)["tensors"] == "FAIL"
    assert not report.passed


def test_a_changed_tokenizer_and_strange_weights_are_named(converted: Converted) -> None:
    moe = converted("demo:tiny")
    (moe / "tokenizer.json").write_text((moe / "tokenizer.json").read_text().replace("the", "eht"))
    (moe / "adapter_model.safetensors").write_bytes(b"")
    report = verify(Verify(dense="demo:tiny", moe=str(moe)))
    assert text_of(report, "files") == (
        "tokenizer.json is not as it was written; "
        "adapter_model.safetensors is not of this conversion, and a reader may load it"
    )
    assert not report.passed


def test_nan_logits_are_never_verified(tiny: Path, converted: Converted) -> None:
    report = check(tiny, converted(tiny, noise=1e30))  # finite in bfloat16, but its products are not
    assert verdicts(report)["logits"] == "FAIL"
    assert not report.passed


@pytest.mark.parametrize(
    "change",
    [
        {"experts": 8.0}, {"experts": None}, {"dtype": ["f32"]}, {"method": "foo"}, {"max_shard_size": 5},
        {"ignore_config": "x"}, {"surplus": 1},
    ],
)  # fmt: skip
def test_a_damaged_recipe_is_refused(tiny: Path, converted: Converted, change: dict[str, Any]) -> None:
    path = converted(tiny) / "upcycle.json"
    receipt = json.loads(path.read_text())
    path.write_text(json.dumps({**receipt, "recipe": {**receipt["recipe"], **change}}))
    with pytest.raises(CheckpointError, match="damaged record in the receipt"):
        check(tiny, path.parent)


def test_what_a_merge_made_proves_itself(tiny: Path, tmp_path: Path) -> None:
    run_merge(draw_adapter(tiny, tmp_path / "adapter", "lora"), tiny, tmp_path / "out")
    with pytest.raises(InputError, match=r"was made by `upcycle merge`, .*`upcycle merge` with --overwrite proves it"):
        check(tiny, tmp_path / "out")


def test_missing_and_unexpected_tensors_are_named(tiny: Path, converted: Converted) -> None:
    moe = converted(tiny)
    tensors = load_file(moe / "model.safetensors")
    tensors["extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, moe / "model.safetensors", metadata={"format": "pt"})
    report = check(tiny, moe)
    assert text_of(report, "missing tensors") == "model.norm.weight"
    assert text_of(report, "unexpected tensors") == "extra.weight"


def test_a_changed_config_is_named(tiny: Path, converted: Converted) -> None:
    moe = converted(tiny)
    config = json.loads((moe / "config.json").read_text())
    (moe / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3, "surplus": 1}))
    report = check(tiny, moe)
    assert not report.passed
    assert text_of(report, "config") == "config.json differs in rms_norm_eps, surplus"


def test_another_dense_model_is_noticed(tiny: Path, dense: Callable[[str], Path], converted: Converted) -> None:
    moe = converted(tiny)
    report = check(dense("llama_gelu"), moe)
    assert not report.passed
    assert verdicts(report)["config"] == "FAIL"
    assert verdicts(report)["tensors"] == "FAIL"


def test_nan_and_inf_are_named(tmp_path: Path, converted: Converted) -> None:
    dense = save_dense("llama", tmp_path / "dense")
    spec = read_header(dense / "model.safetensors").tensors["model.layers.0.mlp.up_proj.weight"]
    with spec.path.open("r+b") as file:
        file.seek(spec.offset)
        file.write(struct.pack("<H", 0x7F80))  # +Inf in bfloat16
    report = check(dense, converted(dense))
    name = "model.layers.0.block_sparse_moe.experts.0.w3.weight"
    assert text_of(report, "finite") == f"NaN or Inf in {name}"
    assert not report.passed


def test_without_a_receipt_it_refuses(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no receipt"):
        check(tiny, tiny)


@pytest.mark.parametrize(
    ("text", "message"), [(b"\xff\xfe", "is not UTF-8 text; found byte 0xff"), (b"", "too short; found 0 tokens")]
)
def test_a_text_that_cannot_be_used(tmp_path: Path, converted: Converted, text: bytes, message: str) -> None:
    (tmp_path / "text").write_bytes(text)
    moe = converted("demo:tiny")
    with pytest.raises(InputError, match=message):
        verify(Verify(dense="demo:tiny", moe=str(moe), text=str(tmp_path / "text")))


def test_figures_are_those_of_stock_transformers(tiny: Path, converted: Converted) -> None:
    """Logits, losses and the router gradients of plain from_pretrained and loss.backward()."""
    moe = converted(tiny, noise=0.3)  # noise, so that the gradients are not zero
    one, other = open_checkpoint(tiny), open_checkpoint(moe)
    ids = random_ids(96, 40)
    parity = run_both(one, other, find_pairs(one.config)[0], ids)
    stock_dense = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    stock = AutoModelForCausalLM.from_pretrained(moe, dtype=torch.float32)
    with torch.no_grad():
        dense_out = stock_dense(ids, labels=ids)
    out = stock(ids, labels=ids)
    out.loss.backward()
    assert parity.dense_loss == pytest.approx(float(dense_out.loss.detach()), abs=2e-6)
    assert parity.moe_loss == pytest.approx(float(out.loss.detach()), abs=2e-6)
    difference = float((out.logits - dense_out.logits).detach().abs().max())
    assert parity.difference == pytest.approx(difference, rel=1e-4)
    for layer, module in zip(parity.layers, stock.model.layers, strict=True):
        assert layer.gradient is not None
        assert layer.gradient.now == pytest.approx(float(module.mlp.gate.weight.grad.norm()), rel=1e-4)


def test_the_gradient_after_a_step_is_what_autograd_gives(tiny: Path, converted: Converted) -> None:
    """The probe's closed form against a stock layer whose down projections really make the step."""
    stock = AutoModelForCausalLM.from_pretrained(converted(tiny), dtype=torch.float32, experts_implementation="eager")
    layer = stock.model.layers[0]
    torch.manual_seed(0)
    hidden, above = torch.randn(1, 20, 32), torch.randn(1, 20, 32)
    positions = stock.model.rotary_emb(hidden, position_ids=torch.arange(20)[None])
    gradient, below = probe_layer(layer, LayerCall(hidden, (), {"position_embeddings": positions}), above)
    assert gradient is not None

    layer.requires_grad_(True)
    layer.zero_grad()
    given = hidden.clone().requires_grad_()
    layer(given, position_embeddings=positions).backward(above)
    torch.testing.assert_close(below, given.grad)
    down = layer.mlp.experts.down_proj
    with torch.no_grad():
        down -= LEARNING_RATE * down.grad.sign()
    layer.zero_grad()
    layer(hidden, position_embeddings=positions).backward(above)
    assert gradient.after_step == pytest.approx(float(layer.mlp.gate.weight.grad.norm()), rel=1e-4)
    assert gradient.now < 1e-3 * gradient.after_step


@pytest.mark.slow  # the real model
def test_memory_stays_within_a_layer_and_a_gigabyte(smollm2: Path, tmp_path: Path) -> None:
    moe = tmp_path / "moe"
    convert(Convert(model=str(smollm2), out=str(moe), experts=8, top_k=2))
    # The peak of the process itself: what wait4 reports would include its parent, this test run, before the exec.
    program = (
        "import atexit, sys; from pathlib import Path; from upcycle.cli.main import main\n"
        "atexit.register(lambda: print(Path('/proc/self/status').read_text(), file=sys.stderr)); main()"
    )
    command = [sys.executable, "-c", program, "verify", str(smollm2), str(moe)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done
    printed = done.stdout
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    assert peak is not None
    assert printed.endswith("verified\n")
    # 8 experts of 3 matrices 1536 x 576, and attention of 2 x 576 x 576 + 2 x 192 x 576, in 4 bytes
    layer = 4 * (8 * 3 * 1536 * 576 + 2 * 576 * 576 + 2 * 192 * 576)
    assert int(peak[1]) * 1024 <= layer + 10**9


@pytest.mark.parametrize("name", ["chat_template.jinja", "added_tokens.json", "adapter_config.json"])
def test_files_that_readers_obey_are_noticed(tiny: Path, converted: Converted, name: str) -> None:
    moe = converted(tiny)
    (moe / name).write_text("{}")
    report = verify(Verify(dense=str(tiny), moe=str(moe), tensors_only=True))
    found = [line.text for line in report.lines if line.verdict == "FAIL"]
    assert found == [f"{name} is not of this conversion, and a reader may load it"]


def test_a_tokenizer_that_was_chosen_counts_for_both_models(converted: Converted, copy_of: Any) -> None:
    from upcycle.pipeline.locate import BUILT_IN

    dense = BUILT_IN["demo:tiny"]
    other = copy_of(dense)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    report = verify(Verify(dense=str(dense), moe=str(converted(dense, tokenizer=str(other))), tokens=32))
    assert report.passed
    notes = {line.name: line.text for line in report.lines}
    assert notes["tokens"] == "those of the tokenizer that --tokenizer chose, for both models"
    assert "logits" in notes


# Plain transformers with its defaults


def test_plain_transformers_runs_what_is_verified(tiny: Path, converted: Converted) -> None:
    moe = converted(tiny)
    report = check(tiny, moe)
    assert report.passed
    assert "plain transformers" not in verdicts(check(tiny, moe, tensors_only=True))
    said = re.fullmatch(
        r"MixtralForCausalLM [\d.]+, bfloat16, grouped_mm: loads and runs with its defaults, loss ([\d.]+)",
        text_of(report, "plain transformers"),
    )
    assert said
    assert float(said[1]) == pytest.approx(report.figures["parity"]["moe_loss"], rel=0.02)  # bfloat16: 1 / 256


@pytest.mark.parametrize(("hidden", "width"), [(50, 48), pytest.param(40, 60, marks=pytest.mark.slow)])
def test_what_plain_transformers_stops_at_is_not_verified(
    hidden: int, width: int, tmp_path: Path, converted: Converted
) -> None:
    """50 values of 2 bytes are 100 bytes, 60 are 120: neither is a multiple of 16."""
    config = LlamaConfig(**{**SMALL, "hidden_size": hidden, "intermediate_size": width, "num_attention_heads": 5,
                            "num_key_value_heads": 5})  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    report = check(tmp_path / "dense", converted(tmp_path / "dense"))
    assert {line.name for line in report.lines if line.verdict == "FAIL"} == {"plain transformers"}
    assert text_of(report, "plain transformers") == (
        "it stops with its defaults (RuntimeError: strides should be multiple of 16 bytes); "
        'only experts_implementation="eager" runs it'
    )


@pytest.mark.slow  # two processes that import transformers
def test_as_many_layers_as_fit_run_in_plain_transformers(
    tiny: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    moe = open_checkpoint(converted(tiny))
    sizes = [(spec.name, spec.elements) for spec in moe.tensors.values()]
    one = memory_needed(sizes, 1, 4 * 4 * 8 * 96, 2)  # 4 times 8 x 96 logits in 4 bytes; weights in 2
    monkeypatch.setattr(plain, "available_memory", lambda: one)
    report = Report()
    plain.report_plain(report, moe, torch.arange(8), 0.0)
    assert verdicts(report) == {"plain transformers": "note"}
    assert text_of(report, "plain transformers").endswith(
        "with its defaults; the first 1 of 2 layers, which is what fits in 0.5 GB"
    )
    monkeypatch.setattr(plain, "available_memory", lambda: one - 1)
    plain.report_plain(report, moe, torch.arange(8), 0.0)
    assert (report.lines[1].verdict, report.lines[1].text) == (
        "note", "not run: one layer takes 0.5 GB, and 0.5 GB are free"
    )  # fmt: skip


def test_another_model_in_plain_transformers_is_a_failure() -> None:
    """Equal logits for 4 tokens: a loss of ln 4 = 1.386 nats."""
    run = CleanRun(torch.zeros(3, 4), {"dtype": "bfloat16"})
    ids_T = torch.tensor([0, 1, 2])
    assert plain._wrong(run, ids_T, 2, 2, 1.4) is None
    assert plain._wrong(run, ids_T, 2, 1, 3.0) is None  # one layer of two: its loss says nothing
    said = plain._wrong(run, ids_T, 2, 2, 3.0)
    assert said == "it computes something else in bfloat16: loss 1.3863, in float32 3.0000"
    run.logits_TV[1, 1] = torch.inf
    assert plain._wrong(run, ids_T, 2, 2, 1.4) == "its logits in bfloat16 are not finite"
