"""Adapters merged into checkpoints of stock transformers: the same function, or a refusal that says why."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.adapt.test_compact import float32_copy
from tests.conftest import edit_json
from tests.drawn_adapters import draw_adapter, formula_model, scale_tensors
from tests.merging import logits_error, run_merge
from upcycle.adapt import changes, proof
from upcycle.adapt.merge import _drafted, merge, rehearse
from upcycle.build import builder
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import CheckpointError, InputError, RequestError, UnsupportedError, UpcycleError
from upcycle.moe import reread
from upcycle.moe.clean_run import CleanRun
from upcycle.moe.memory import memory_needed
from upcycle.plan.report import Report
from upcycle.requests.merge import Merge

KINDS = ("lora", "ia3", "bottleneck")


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Path:
    """The small llama in float32."""
    return float32_copy(tiny, tmp_path / "base")


def test_full_equals_the_adapter(variant: Path, tmp_path: Path) -> None:
    base = float32_copy(variant, tmp_path / "base")
    for kind in KINDS:
        adapter = draw_adapter(base, tmp_path / kind, kind, attention_rank=3)
        run_merge(adapter, base, tmp_path / f"{kind}-out")
        assert logits_error(formula_model(base, adapter), tmp_path / f"{kind}-out") <= 1e-5, kind


@pytest.mark.parametrize("fields", [{"shared_a": True}, {"routing": "dense"}, {"top_k": 1}, {"rank": 3}])
def test_full_lora_of_every_setting(base: Path, fields: dict[str, Any], tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora", **fields)
    run_merge(adapter, base, tmp_path / "out")
    assert logits_error(formula_model(base, adapter), tmp_path / "out") <= 1e-5


def test_a_bottleneck_widens_the_ffn(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck")
    merged = run_merge(adapter, base, tmp_path / "out")
    config = open_checkpoint(tmp_path / "out").config
    assert config["intermediate_size"] == 48 + 8
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (4, 2)
    experts = next(part for part in merged.account.parts if part.role == "experts")
    assert experts.parameters == 2 * 4 * 3 * 32 * 56
    assert merged.account.disk > 2 * merged.base_bytes


def test_only_a_few_linear_layers_of_the_attention_may_have_a_lora(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora", attention_rank=3)
    path = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if ".k_proj." not in name}, path)
    run_merge(adapter, base, tmp_path / "out")
    assert logits_error(formula_model(base, adapter), tmp_path / "out") <= 1e-5


def test_shards(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora")
    merged = run_merge(adapter, base, tmp_path / "out", max_shard_size="50KB")
    assert merged.account.files > 3
    assert logits_error(formula_model(base, adapter), tmp_path / "out") <= 1e-5


def test_the_receipt_names_both(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora")
    run_merge(adapter, base, tmp_path / "out")
    receipt = json.loads((tmp_path / "out/upcycle.json").read_text())
    assert set(receipt["source"]["files"]) == {"model.safetensors", "adapter_model.safetensors"}
    assert (receipt["recipe"]["command"], receipt["recipe"]["adapter"]) == ("merge", "adapter")
    assert receipt["exact"] is True


def test_the_tokenizer_is_the_adapters(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora")
    (base / "tokenizer.json").write_text("{}")
    (base / "chat_template.jinja").write_text("of the base")
    (adapter / "tokenizer.json").write_text('{"of": "the adapter"}')
    run_merge(adapter, base, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_text() == '{"of": "the adapter"}'
    assert not (tmp_path / "out/chat_template.jinja").exists()


# Refusals


@pytest.mark.parametrize(
    ("kind", "fields", "asked", "why"),
    [
        ("pesc", {}, {}, "pesc experts read the FFN's output"),
        ("pesc", {}, {"to": "compact"}, "it stays an adapter"),
        ("lora", {"routing": "top1"}, {}, "do not sum to one"),
        ("bottleneck", {"routing": "top1"}, {"to": "compact"}, "do not sum to one"),
        ("lora", {"num_experts": [2, 4]}, {}, "different numbers of experts; .* 2 to 4 experts|different numbers"),
        ("lora", {"num_experts": [0, 4]}, {}, "layers without experts"),
        ("lora", {}, {"to": "compact"}, "no compact form"),
        ("ia3", {}, {"to": "compact"}, "no compact form"),
    ],
)
def test_refused(
    kind: str, fields: dict[str, Any], asked: dict[str, Any], why: str, base: Path, tmp_path: Path
) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", kind, **fields)
    with pytest.raises(UnsupportedError, match=why):
        run_merge(adapter, base, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["full", "compact"])
@pytest.mark.parametrize(
    ("dtype", "rank", "multiple", "hint"),
    [("bf16", 12, 8, "--dtype f32 or another --rank"), ("f16", 4, 8, "--dtype f32"), ("f32", 6, 4, "another --rank")],
)
def test_widths_that_crash_stock_transformers(
    to: str, dtype: str, rank: int, multiple: int, hint: str, base: Path, tmp_path: Path
) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck", rank=rank)
    with pytest.raises(UnsupportedError, match=f"not a multiple of {multiple} crash") as caught:
        run_merge(adapter, base, tmp_path / "out", to=to, dtype=dtype)
    assert str(caught.value.hint).startswith(hint)


def test_what_was_not_trained_would_be_copies(base: Path, tmp_path: Path) -> None:
    for kind, zero in (("lora", "_B"), ("ia3", "scale"), ("bottleneck", "down_proj")):
        adapter = draw_adapter(base, tmp_path / kind, kind)
        scale_tensors(adapter, zero, 0)
        with pytest.raises(UnsupportedError, match=r"experts of 2 layers equal the base in float32.*model\.layers\.0"):
            run_merge(adapter, base, tmp_path / "out")


def test_what_rounding_loses_would_be_copies(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "ia3")
    scale_tensors(adapter, "scale", 1e-4)  # bfloat16 keeps 1 / 256
    with pytest.raises(UnsupportedError, match=r"equal the base in bfloat16.*rounding, which --dtype f32 prevents"):
        run_merge(adapter, float32_copy(base, tmp_path / "base2"), tmp_path / "out", dtype="bf16")
    run_merge(adapter, base, tmp_path / "out")


def test_an_expert_that_no_token_chose_is_told(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck")
    mask = torch.ones(4, 1, 1)
    mask[2] = 0
    scale_tensors(adapter, "layers.1.mlp.upcycle_experts.down_proj", mask)
    for to in ("full", "compact"):
        merged = run_merge(adapter, base, tmp_path / to, to=to)
        draft = _draft(adapter, base, to)
        report = Report()
        changes.report_experts(report, draft, open_checkpoint(tmp_path / to))
        assert report.lines[0].verdict == "note"
        assert "1 of 8 equal the base: layer 1, expert 2" in report.lines[0].text
        assert merged.plan.exact


def _draft(adapter: Path, base: Path, to: str) -> Any:
    return _drafted(adapter, base, Merge(adapter=str(adapter), out="out", to=to))[0]  # type: ignore[arg-type]


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora")
    path = base / "model.safetensors"
    tensors = {name: value + 0.1 for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="not the model that the adapter was made for"):
        run_merge(adapter, base, tmp_path / "out")


def test_an_adapter_that_lost_its_routers(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora")
    path = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "router" not in name}, path)
    with pytest.raises(CheckpointError, match="2 tensors are missing: an adapter that lost its routers"):
        run_merge(adapter, base, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peft_type": "LORA"}, "is no adapter with experts"),
        ({"rank": 16}, "does not fit the adapter's config and the base"),
        ({"num_experts": [4]}, "is of another model"),
        ({"scaling": "much"}, "damaged adapter config.*scaling"),
        ({"shared_a": True}, "does not fit"),
        ({"expert_type": "ia3"}, "missing"),
    ],
)
def test_a_config_that_lies(changes: dict[str, Any], why: str, base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora")
    edit_json(adapter / "adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match=why):
        run_merge(adapter, base, tmp_path / "out")


def test_a_target_is_only_for_compact() -> None:
    with pytest.raises(
        RequestError, match="--target does not go with the other options; found qwen2_moe, expected --to compact"
    ):
        Merge(adapter="a", out="b", target="qwen2_moe")


def test_a_rehearsal_writes_nothing(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora")
    merged = rehearse(adapter, base, Merge(adapter=str(adapter), out=str(tmp_path / "out")))
    assert merged.report is None
    assert not list(tmp_path.glob("out*"))


# The proof


def test_proven_in_a_clean_process(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck", attention_rank=3)
    merged = run_merge(adapter, base, tmp_path / "out", to="compact", proven=True)
    assert merged.report
    verdicts = {line.name: (line.verdict, line.text) for line in merged.report.lines}
    assert verdicts["logits"][0] == "ok"
    assert verdicts["greedy text"] == ("ok", "the same 24 tokens")
    assert verdicts["experts"] == ("ok", "all 8 differ from the base on disk")
    assert verdicts["tensors"][0] == "ok"
    assert "models" not in verdicts  # all layers ran
    assert "in a process without upcycle" in verdicts["loading"][1]
    assert merged.report.figures["parity"]["relative"] <= 1e-5
    assert json.loads(json.dumps(merged.as_json()))["proof"]["passed"] is True


def test_what_computes_something_else_gets_no_name(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora")

    def clean_run(_output: Path, ids_T: torch.Tensor, _text: object, _layers: int) -> CleanRun:
        model = formula_model(base, adapter)
        logits = reread.logits(model, ids_T)
        tokens, _ = reread.greedy(model, ids_T[: proof.PROMPT], proof.NEW_TOKENS)
        told = {"class": "X", "version": "5", "loading": {}, "upcycle": False, "tokens": tokens, "read": None}
        return CleanRun(logits + 1e-3, told)

    monkeypatch.setattr(proof, "_clean_run", clean_run)
    request = Merge(adapter=str(adapter), out=str(tmp_path / "out"))
    with pytest.raises(UpcycleError, match="does not compute what the adapter does; logits: largest error"):
        merge(adapter, base, request, lambda _: lambda _: None)
    assert not (tmp_path / "out").exists()


def prove_again(adapter: Path, base: Path, out: Path, **fields: Any) -> dict[str, tuple[str, str]]:
    """Prove what has been merged; return verdict and text of every line."""
    request = Merge(adapter=str(adapter), out=str(out), **fields)
    drafted, checkpoint, _ = _drafted(adapter, base, request)
    report = proof.prove(drafted, drafted, checkpoint, adapter, out, request)
    return {line.name: (line.verdict, line.text) for line in report.lines}


def flip_byte(out: Path, tensor: str) -> None:
    spec = open_checkpoint(out).tensors[tensor]
    with spec.path.open("r+b") as file:
        file.seek(spec.offset)
        (byte,) = file.read(1)
        file.seek(spec.offset)
        file.write(bytes([byte ^ 1]))


def test_the_first_layers_alone(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora", attention_rank=3)
    run_merge(adapter, base, tmp_path / "out")
    lines = prove_again(adapter, base, tmp_path / "out", proof_layers=1)
    assert lines["models"] == (
        "note", "the first 1 of 2 layers ran, which --proof-layers asks for; the tensors of all are compared above"
    )  # fmt: skip
    assert {lines[name][0] for name in ("tensors", "loading", "logits", "greedy text")} == {"ok"}


def test_as_many_layers_as_fit(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck")
    run_merge(adapter, base, tmp_path / "out")
    sizes = [(spec.name, spec.elements) for spec in open_checkpoint(tmp_path / "out").tensors.values()]
    one = memory_needed(sizes, 1, beside=4 * 4 * 64 * 96)  # logits, bytes, tokens, vocabulary
    given: list[int] = []

    def models(_report: Report, _draft: object, _wide: object, _places: object, layers: int, *_: object) -> None:
        given.append(layers)

    monkeypatch.setattr(proof, "_report_models", models)
    monkeypatch.setattr(proof, "available_memory", lambda: one)
    lines = prove_again(adapter, base, tmp_path / "out")
    assert lines["models"][1].startswith("the first 1 of 2 layers ran, which is what fits in 0.5 GB; ")
    assert lines["models"][1].endswith("--proof-layers sets their number")
    assert given == [1]
    monkeypatch.setattr(proof, "available_memory", lambda: one - 1)
    lines = prove_again(adapter, base, tmp_path / "out")
    assert lines["models"][1].startswith("not run: one layer takes 0.5 GB, and 0.5 GB are free")
    assert lines["tensors"][0] == "ok"
    assert given == [1]


@pytest.mark.parametrize("tensor", ["experts.3.w2.weight", "gate.weight"])
def test_a_wrong_tensor_in_a_layer_that_did_not_run(tensor: str, base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora")
    run_merge(adapter, base, tmp_path / "out")
    name = f"model.layers.1.block_sparse_moe.{tensor}"
    flip_byte(tmp_path / "out", name)
    lines = prove_again(adapter, base, tmp_path / "out", proof_layers=1)
    assert lines["tensors"][0] == "FAIL"
    assert lines["tensors"][1].startswith(f"1 differ: {name}: ")
    assert lines["models"] == ("note", "not run: what is wrong above comes first")


def test_another_merge_is_no_proof(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck")
    run_merge(adapter, base, tmp_path / "out", to="compact")
    lines = prove_again(adapter, base, tmp_path / "out")
    assert {lines["missing tensors"][0], lines["unexpected tensors"][0]} == {"FAIL"}


def test_nan_in_any_expert_is_found(base: Path, tmp_path: Path) -> None:
    """Also where the experts are parts of one tensor of the adapter, copied as they are."""
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck")
    mask = torch.ones(4, 1, 1)
    mask[2] = torch.nan
    scale_tensors(adapter, "layers.1.mlp.upcycle_experts.up_proj", mask)
    run_merge(adapter, base, tmp_path / "out", to="compact", target="qwen2_moe")
    lines = prove_again(adapter, base, tmp_path / "out", to="compact", target="qwen2_moe")
    assert lines["finite"] == ("FAIL", "NaN or Inf in model.layers.1.mlp.experts.2.up_proj.weight")


def test_only_later_layers_are_excused() -> None:
    told: dict[str, Any] = {"class": "X", "version": "5", "upcycle": False}
    later = {"unexpected_keys": ["model.layers.1.mlp.experts.down_proj", "model.layers.12.mlp.gate.weight"]}
    for loading, verdict in (
        (later, "ok"),
        ({"unexpected_keys": [*later["unexpected_keys"], "model.layers.0.mlp.bias"]}, "FAIL"),
        ({"unexpected_keys": ["lm_head.bias"]}, "FAIL"),
        ({**later, "missing_keys": ["model.layers.0.mlp.gate.weight"]}, "FAIL"),
    ):
        report = Report()
        proof._report_loading(report, CleanRun(torch.empty(0, 0), {**told, "loading": loading}), 1)
        assert report.lines[0].verdict == verdict
        assert "layers.1" not in report.lines[0].text


@pytest.mark.slow
def test_the_first_layer_of_every_variant(variant: Path, tmp_path: Path) -> None:
    """Cut to it, both sides load and compute the same."""
    base = float32_copy(variant, tmp_path / "base")
    if variant.name.startswith("llama"):
        edit_json(base / "config.json", layer_types=["full_attention"] * 2)
    adapter = draw_adapter(base, tmp_path / "adapter", "bottleneck", attention_rank=3)
    windowed = (open_checkpoint(base).config.get("sliding_window") or 64) < 64
    ids_T = torch.arange(40) % 96
    expected_TV = proof._adapter_run(base, adapter, ids_T, 1).logits_TV
    compact = [] if windowed else [("compact", "granitemoeshared"), ("compact", "qwen2_moe")]
    for to, target in (("full", None), *compact):
        out = tmp_path / f"out-{target}"
        run_merge(adapter, base, out, to=to, target=target)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, **reread.cut(out, 1))
        assert len(model.model.layers) == 1
        found_TV = reread.logits(model.eval(), ids_T)
        assert (found_TV - expected_TV).abs().max() <= 1e-5 * expected_TV.abs().max(), target


@pytest.mark.slow
def test_another_process_refuses_what_it_cannot_load(base: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(base, tmp_path / "adapter", "lora")
    run_merge(adapter, base, tmp_path / "out")
    edit_json(tmp_path / "out/config.json", num_attention_heads=5)
    with pytest.raises(UpcycleError, match="plain transformers cannot run it"):
        proof._clean_run(tmp_path / "out", torch.arange(8), None, 2)


@pytest.mark.slow
@pytest.mark.parametrize("form", [("full", None), ("compact", "granitemoeshared"), ("compact", "qwen2_moe")])
def test_smollm2_is_proven(smollm2: Path, form: tuple[str, str | None], tmp_path: Path) -> None:
    adapter = draw_adapter(smollm2, tmp_path / "adapter", "bottleneck", std=0.05, rank=16)
    merged = run_merge(adapter, smollm2, tmp_path / "out", to=form[0], target=form[1], dtype="f32", proven=True)
    assert merged.report
    assert {line.verdict for line in merged.report.lines} == {"ok"}


@pytest.mark.slow
def test_smollm2_with_rounding_is_a_note(smollm2: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(smollm2, tmp_path / "adapter", "lora", std=0.02, attention_rank=4)
    merged = run_merge(adapter, smollm2, tmp_path / "out", dtype="bf16", proven=True)
    assert merged.report
    verdicts = {line.name: line.verdict for line in merged.report.lines}
    assert (verdicts["rounding"], verdicts["function"], verdicts["logits"]) == ("note", "note", "ok")


@pytest.mark.slow
def test_a_rounded_merge_that_computes_something_else_is_not_put_in_place(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rounding is expected, a wrong plan would hide behind it: the plan in float32 has no such excuse."""
    adapter = draw_adapter(tiny, tmp_path / "adapter", "bottleneck", std=0.1)
    right = builder._Layout.config
    run_merge(adapter, tiny, tmp_path / "sound", proven=True, dtype="bf16")
    monkeypatch.setattr(builder._Layout, "config", lambda *args: {**right(*args), "num_experts_per_tok": 1})
    with pytest.raises(UpcycleError, match="does not compute what the adapter does; logits: largest error"):
        run_merge(adapter, tiny, tmp_path / "out", proven=True, dtype="bf16")
    assert not (tmp_path / "out").exists()
