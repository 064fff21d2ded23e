"""A trained model stops where its answers end: what is said before the training, and what --eos changes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.text.test_chat import PLAIN
from tests.training import losses, run_train
from upcycle.errors import InputError
from upcycle.requests import Train
from upcycle.train.setup import set_up
from upcycle.train.stops import add_stop

TALK = [
    {"role": "user", "content": "Who made the heaven and the earth? " * 3},
    {"role": "assistant", "content": "God made them."},
]
GENERATION = "generation_config.json"


@pytest.fixture
def plain(moe: Path, tmp_path: Path) -> Path:
    """A model whose chat template ends answers in no token."""
    model = Path(shutil.copytree(moe, tmp_path / "plain"))
    (model / "chat_template.jinja").write_text(PLAIN)
    return model


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text((json.dumps({"messages": TALK}) + "\n") * 40)
    return path


def stops(directory: Path) -> Any:
    return json.loads((directory / GENERATION).read_text())["eos_token_id"]


def test_it_is_said_before_the_training_begins(
    plain: Path, chats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = Train(model=str(plain), out=str(tmp_path / "out"), data=(str(chats),), seq_len=64, max_steps=1)
    with set_up(plain, request):
        (said,) = [message for message in caplog.messages if "--eos" in message]
    assert said.startswith("answers end in no special token, but the model stops at </s> (eos_token_id in generation_")


def test_a_first_record_that_is_wrong_ends_it_before_it_begins(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    with pytest.raises(InputError, match=r"wrong\.jsonl:1: nobody answers in this conversation"):
        run_train(plain, tmp_path / "out", tmp_path / "wrong.jsonl")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_learns_to_stop(plain: Path, tmp_path: Path) -> None:
    """Without --eos the trained model writes on behind its answer, with it it ends there."""
    talk = [{"role": "user", "content": "Who made heaven?"}, {"role": "assistant", "content": "God made them."}]
    (tmp_path / "short.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 40)
    fields: dict[str, Any] = {"max_steps": 40, "lr": 1e-2, "seq_len": 32, "batch_size": 2}
    written = {}
    for name, eos in (("without", None), ("with", "</s>")):
        out = run_train(plain, tmp_path / name, tmp_path / "short.jsonl", eos=eos, **fields)
        tokenizer = AutoTokenizer.from_pretrained(out)
        prompt = tokenizer("user: Who made heaven?\nassistant: God", return_tensors="pt")["input_ids"]
        model = AutoModelForCausalLM.from_pretrained(out)
        ids = model.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=1)[0, prompt.shape[1] :]
        written[name] = tokenizer.decode(ids)
    assert written["with"] == " made them.\n</s>"
    assert written["without"].startswith(" made them.\n")
    assert "</s>" not in written["without"]


def test_the_token_is_in_the_output_and_in_what_goes_on(plain: Path, chats: Path, tmp_path: Path) -> None:
    """Beside those that the model stops at anyway; everything else of the file is as it was."""
    assert stops(plain) == 1
    before = json.loads((plain / GENERATION).read_text())
    out = run_train(plain, tmp_path / "out", chats, eos="<s>", max_steps=2, save_every=1)
    assert json.loads((out / GENERATION).read_text()) == {**before, "eos_token_id": [1, 0]}
    assert stops(out / "checkpoint-000001") == [1, 0]
    shutil.rmtree(out / "checkpoint-000002")
    resumed = run_train(plain, out, chats, eos="<s>", max_steps=2, save_every=1, resume=True)
    assert stops(resumed) == [1, 0]
    with pytest.raises(InputError, match="the training run there is another one"):
        run_train(plain, out, chats, max_steps=2, save_every=1, resume=True)


def test_the_file_stays_as_it_is_where_the_token_is_in_it(plain: Path, chats: Path, tmp_path: Path) -> None:
    out = run_train(plain, tmp_path / "out", chats, eos="</s>", max_steps=1)
    assert (out / GENERATION).read_bytes() == (plain / GENERATION).read_bytes()


def test_without_eos_nothing_changes(plain: Path, chats: Path, tmp_path: Path) -> None:
    out = run_train(plain, tmp_path / "out", chats, max_steps=1)
    assert (out / GENERATION).read_bytes() == (plain / GENERATION).read_bytes()
    assert "eos" not in json.loads((out / "training.json").read_text())["fingerprint"]["recipe"]
    assert len(losses(out)) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, {"eos_token_id": [5, 7]}),
        ({"top_k": 3}, {"top_k": 3, "eos_token_id": [5, 7]}),
        ({"eos_token_id": None}, {"eos_token_id": [5, 7]}),
        ({"eos_token_id": [8, 9]}, {"eos_token_id": [8, 9, 7]}),
    ],
)
def test_files_that_name_no_token_one_or_several(before: Any, after: Any, tmp_path: Path) -> None:
    """A file that names none means those of config.json."""
    if before is not None:
        (tmp_path / GENERATION).write_text(json.dumps(before))
    add_stop(tmp_path, [5, 7], 7)
    assert json.loads((tmp_path / GENERATION).read_text()) == after


def test_a_token_that_the_tokenizer_does_not_have(plain: Path, chats: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--eos <\|im_end\|>: is no token of the tokenizer"):
        run_train(plain, tmp_path / "out", chats, eos="<|im_end|>")
    assert not (tmp_path / "out").exists()
