"""What options change, each seen in the figures or the files of a short training."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import run_convert
from tests.training import lines, losses, run_train
from upcycle.errors import InputError
from upcycle.pipeline import stages
from upcycle.requests import Train


def test_groups_have_learning_rates_of_their_own(moe: Path, text: Path, tmp_path: Path) -> None:
    out = run_train(moe, tmp_path / "out", text, max_steps=4, warmup_steps=2, lr=1e-3, router_lr=0.0, expert_lr=2e-3)
    rates = [line["lr"] for line in lines(out)]
    # two steps of warm-up, then a cosine that ends at a tenth: 1/2, 1, (1 + .1) / 2, .1
    for rate, factor in zip(rates, (0.5, 1.0, 0.55, 0.1), strict=True):
        assert rate["experts"] == pytest.approx(2e-3 * factor)
        assert rate["rest"] == pytest.approx(1e-3 * factor)
        assert rate["router"] == 0.0
    before, after = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (moe, out))
    gates = [model.get_parameter("model.layers.0.mlp.gate.weight") for model in (before, after)]
    assert torch.equal(*gates)  # weight decay, too, goes by the learning rate


def test_start_step_goes_on_with_the_schedule_of_an_earlier_run(moe: Path, text: Path, tmp_path: Path) -> None:
    out = run_train(
        moe, tmp_path / "out", text, max_steps=2, schedule="inverse-sqrt", warmup_steps=100, start_step=398, lr=1.0e-4
    )
    # T5's sqrt(k / n) with k = 100 steps of warm-up, at steps 399 and 400 of that schedule
    expected = [1e-4 * (100 / step) ** 0.5 for step in (399, 400)]
    assert [line["lr"]["rest"] for line in lines(out)] == pytest.approx(expected)


def test_the_held_out_loss_is_that_of_stock_transformers(moe: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[::-1])
    out = run_train(moe, tmp_path / "out", other, max_steps=2, eval_data=(str(text),), eval_sequences=8, eval_every=1)
    every = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in every] == [0, 1, 2]
    assert all(line["eval_loss"] > 0 for line in every)
    ids = AutoTokenizer.from_pretrained(moe)(text.read_text())["input_ids"][: 8 * 64]
    blocks = torch.tensor(ids).view(8, 64)
    for directory, line in ((moe, every[0]), (out, every[-1])):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        with torch.no_grad():
            assert float(model(input_ids=blocks, labels=blocks).loss) == pytest.approx(line["eval_loss"], abs=1e-5)


def test_text_that_is_measured_on_is_not_trained_on(moe: Path, text: Path, tmp_path: Path) -> None:
    """A hard link has another name and is the same text."""
    (tmp_path / "link.txt").hardlink_to(text)
    with pytest.raises(
        InputError, match=r"link\.txt: is trained on too.*take it out of --data, or instead of --eval-data"
    ):
        run_train(moe, tmp_path / "out", text, max_steps=1, eval_data=(str(tmp_path / "link.txt"),))
    assert not (tmp_path / "out").exists()


def test_held_out_text_is_not_trained_on(moe: Path, text: Path, tmp_path: Path) -> None:
    whole = run_train(moe, tmp_path / "whole", text, max_steps=2)
    split = run_train(moe, tmp_path / "split", text, max_steps=2, eval_split=0.3, eval_sequences=4)
    assert losses(whole) != losses(split)
    assert "eval_loss" in lines(split)[-1]


def test_a_chat_is_trained_on_its_answers(smollm2: Path, tmp_path: Path) -> None:
    """The share of tokens that the loss asks for: the answers of one conversation, nothing of the questions."""
    from upcycle.text.encode import Encoder
    from upcycle.text.stream import BlockStream

    chat = [{"role": "user", "content": "Name a colour. " * 20}, {"role": "assistant", "content": "Blue."}]
    path = tmp_path / "chat.jsonl"
    path.write_text((json.dumps({"messages": chat}) + "\n") * 8)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    block = BlockStream([str(path)], Encoder(tokenizer), seq_len=128, seed=0, shuffle=0).next()
    asked = tokenizer.decode(block.ids_T[block.target_T])
    assert asked.count("Blue.<|im_end|>") == asked.count("Blue") >= 1
    assert "colour" not in asked


def test_a_tracker_gets_the_figures(moe: Path, text: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = run_train(moe, tmp_path / "out", text, max_steps=2, tracker="tensorboard")
    events = next(path.parent for path in (out / "logs").rglob("events*"))
    seen = EventAccumulator(str(events)).Reload()
    assert [event.value for event in seen.Scalars("loss")] == pytest.approx(losses(out))
    assert seen.Scalars("grad_norm/router")
    assert seen.Scalars("layers/0/max_over_mean")


@pytest.mark.filterwarnings("ignore:Dynamo detected", "ignore::DeprecationWarning:torch")
@pytest.mark.slow
def test_a_compiled_model_trains_alike(moe: Path, text: Path, tmp_path: Path) -> None:
    plain = run_train(moe, tmp_path / "plain", text, max_steps=3)
    compiled = run_train(moe, tmp_path / "compiled", text, max_steps=3, compile=True)
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-4)


def test_a_merged_lora_run_can_be_resumed_for_more_steps(moe: Path, text: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"train": "lora", "lora_rank": 4, "schedule": "constant", "warmup_steps": 0}
    once = run_train(moe, tmp_path / "once", text, max_steps=4, **fields)
    twice = run_train(moe, tmp_path / "twice", text, max_steps=2, **fields)
    run_train(moe, twice, text, max_steps=4, resume=True, **fields)
    assert losses(twice) == losses(once)
    assert (twice / "model.safetensors").read_bytes() == (once / "model.safetensors").read_bytes()


def test_four_bits_are_merged_into_whole_weights(moe: Path, text: Path, tmp_path: Path) -> None:
    out = run_train(moe, tmp_path / "out", text, train="lora", load_in_4bit=True, max_steps=2)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_four_bits_without_bitsandbytes_are_refused(
    moe: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    for fields in ({"train": "lora", "load_in_4bit": True}, {"optimizer": "adamw8bit"}):
        with pytest.raises(InputError, match="bitsandbytes"):
            run_train(moe, tmp_path / "out", text, **fields)
        assert not (tmp_path / "out").exists()


def test_weights_of_a_mixture_are_shares_of_the_tokens(moe: Path, text: Path, tmp_path: Path) -> None:
    """A source that is all one word is told from the other by its loss."""
    (tmp_path / "word.txt").write_text("and " * 20000)
    out = tmp_path / "out"
    stages.train(
        Train(
            model=str(moe), out=str(out), data=(str(text), str(tmp_path / "word.txt")), data_weight=(1.0, 9.0),
            seq_len=32, batch_size=20, max_steps=1, lr=0.0,
        )
    )  # fmt: skip
    alone = run_train(moe, tmp_path / "alone", text, max_steps=1, lr=0.0, batch_size=20, seq_len=32)
    words = run_train(moe, tmp_path / "words", tmp_path / "word.txt", max_steps=1, lr=0.0, batch_size=20, seq_len=32)
    share = (losses(out)[0] - losses(words)[0]) / (losses(alone)[0] - losses(words)[0])
    assert 0 <= share < 0.35  # a tenth of twenty sequences, drawn


@pytest.mark.slow
def test_smollm2_trains_and_its_held_out_loss_falls(smollm2: Path, tmp_path: Path) -> None:
    """The real model with four experts, on the real text of the standard library."""
    import argparse
    import inspect

    moe = run_convert(smollm2, tmp_path / "moe", experts=4)
    (tmp_path / "code.txt").write_text(inspect.getsource(argparse))
    out = run_train(
        moe, tmp_path / "out", tmp_path / "code.txt", seq_len=128, batch_size=2, max_steps=12, lr=1e-4,
        eval_split=0.2, eval_sequences=8,
    )  # fmt: skip
    every = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = [line["eval_loss"] for line in every if "eval_loss" in line]
    assert measured[-1] < measured[0] - 0.05
    model, told = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(out)
    inputs = tokenizer("def parse_args(", return_tensors="pt")
    written = tokenizer.decode(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0])
    assert len(written) > len("def parse_args(")


def test_a_tracker_that_is_not_installed_is_named(moe: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pip install trackio"):
        run_train(moe, tmp_path / "out", text, tracker="trackio")
    assert not (tmp_path / "out").exists()
