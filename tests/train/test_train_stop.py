"""Whatever stops a training: what it saved is complete, and resumed it is the training that was not stopped."""

import errno
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments

from tests.conftest import contents
from tests.faults import FORKS, can_mount, count_steps, kill, limit_files, mount, own_mounts, preload
from tests.training import (
    PATIENCE,
    Command,
    launched,
    lines,
    losses,
    run_train,
    steps,
    told,
    train_words,
    two_processes,
    wait_for,
)
from upcycle.errors import InputError, StagingError, UpcycleError
from upcycle.pipeline import stages
from upcycle.requests import Plot
from upcycle.train.saved.manifest import find_fault

preload("tests.train.test_train_stop")

STEPS = 8
SHORT: dict[str, Any] = {
    "seq_len": 32, "batch_size": 2, "max_steps": STEPS, "save_every": 3, "warmup_steps": 2, "eval_split": 0.1,
    "eval_every": 4, "eval_sequences": 2,
}  # fmt: skip
STOP = 5
"""The step after which `stopped` was interrupted: checkpoints 3 and 5 are there."""

KINDS: dict[str, dict[str, Any]] = {
    "f32": {},
    "bf16": {"dtype": "bf16"},
    "lora": {"train": "lora", "lora_rank": 2},
    "mixture": {"shuffle": 4, "grad_accum": 2, "data_weight": (1.0, 3.0)},
}


class Watcher:
    """An observer that acts after a step."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.at, self.act = step, act

    def begin(self, total_steps: int, done: int) -> None: ...

    def step(self, metrics: dict[str, Any]) -> None:
        if metrics["step"] == self.at:
            self.act()

    def note(self, text: str) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Of torch, here and in other processes: two wait for each other where other tests have the cores."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # of a command that is started
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fields_of(text: Path) -> Callable[[str], dict[str, Any]]:
    """Return a function: name of a kind -> the fields of its training."""
    second = text.with_name("logging.txt")
    second.write_bytes(Path(logging.__file__).read_bytes())

    def fields(kind: str) -> dict[str, Any]:
        data = {"data": (str(text), str(second))} if kind == "mixture" else {}
        return {**SHORT, **KINDS[kind], **data}

    return fields


@pytest.fixture(scope="module")
def whole(
    moe: Path, text: Path, fields_of: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function: name of a kind -> a training of it that nothing stopped (made once)."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = run_train(moe, tmp_path_factory.mktemp(kind) / "out", text, **fields_of(kind))
        return made[kind]

    return get


@pytest.fixture(scope="module")
def interrupted(moe: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training in which Ctrl-C came in a step."""
    out = tmp_path_factory.mktemp("interrupted") / "out"
    with pytest.raises(KeyboardInterrupt) as caught:
        run_train(moe, out, text, observer=Watcher(STOP, partial(signal.raise_signal, signal.SIGINT)), **SHORT)
    assert caught.value.__notes__ == [f"step {STOP} is saved in {out}, --resume goes on from there"]
    return out


@pytest.fixture
def stopped(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(interrupted, tmp_path / "out"))


def saved(out: Path) -> dict[int, Path]:
    """The complete checkpoints by their step."""
    found = {int(path.name[-6:]): path for path in sorted(out.glob("checkpoint-??????"))}
    return {step: path for step, path in found.items() if find_fault(path) is None}


def check_same(one: Path, other: Path) -> None:
    """Two finished trainings tell the same, digit for digit, and end with the same bytes, of the optimizer too."""
    assert told(one) == told(other)
    last = f"checkpoint-{STEPS:06d}"
    assert contents(one / last) == contents(other / last)
    ours, theirs = (
        {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name in NAMES}
        for out in (one, other)
    )
    assert ours == theirs
    assert {path.name for path in one.iterdir()} >= {path.name for path in other.iterdir() if path.is_file()}
    assert not list(one.rglob("*.partial"))


NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


# -- SIGKILL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_a_random_time(
    moe: Path, text: Path, whole: Callable[[str], Path], fields_of: Callable[[str], dict[str, Any]], tmp_path: Path,
    kind: str, seed: int,
) -> None:  # fmt: skip
    drawn = random.Random(f"{kind} {seed}")
    run = Command(train_words(moe, tmp_path / "out", text, **fields_of(kind)), tmp_path / "heard")
    run.wait_for_step(drawn.randint(1, STEPS - 3))
    time.sleep(drawn.uniform(0, 0.05))
    run.send(signal.SIGKILL)
    assert run.end() == (-signal.SIGKILL, [])
    assert steps(tmp_path / "out") < STEPS
    check_same(run_train(moe, tmp_path / "out", text, **fields_of(kind), resume=True), whole(kind))


def kill_before(change: int, place: str) -> None:
    count_steps(change, kill, place)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_killed_before_a_change_to_the_disk(
    moe: Path, text: Path, whole: Callable[[str], Path], tmp_path: Path, seed: int
) -> None:
    """Where a checkpoint is being written, gets its name, or an older one is removed."""
    before = partial(kill_before, random.Random(seed).randint(4, 120), str(tmp_path / "out"))
    run = Command(train_words(moe, tmp_path / "out", text, **SHORT), tmp_path / "heard", before)
    assert run.end() == (-signal.SIGKILL, [])
    check_same(run_train(moe, tmp_path / "out", text, **SHORT, resume=True), whole("f32"))


@pytest.mark.slow  # it imports everything twice
def test_the_command_line_itself_is_killed(moe: Path, text: Path, whole: Callable[[str], Path], tmp_path: Path) -> None:
    words = train_words(moe, tmp_path / "out", text, **SHORT)
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: steps(tmp_path / "out") >= 4)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run([*words, "--resume"], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_same(tmp_path / "out", whole("f32"))


# -- damaged checkpoints -----------------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "name"),
    [(truncated, "model.safetensors"), (flipped, "state/optimizer.safetensors"), (Path.unlink, "state/data.json")],
)
def test_a_damaged_newest_checkpoint_is_passed_over(
    moe: Path, text: Path, whole: Callable[[str], Path], stopped: Path, damage: Callable[[Path], None], name: str
) -> None:
    newest = stopped / f"checkpoint-{STOP:06d}"
    (stopped / "model.safetensors").unlink(missing_ok=True)
    damage(newest / name)
    run = Command(train_words(moe, stopped, text, **SHORT, resume=True), stopped.parent / "heard")
    code, said = run.end()
    assert code == 0
    assert len(said) == 1
    assert said[0].startswith(f"upcycle: {newest} is damaged and passed over: {name}: ")
    check_same(stopped, whole("f32"))


def test_all_checkpoints_are_damaged(
    moe: Path, text: Path, whole: Callable[[str], Path], stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It begins again."""
    for path in saved(stopped).values():
        truncated(path / "state" / "optimizer.safetensors")
    check_same(run_train(moe, stopped, text, **SHORT, resume=True), whole("f32"))
    assert [record.getMessage().split(" is damaged")[0] for record in caplog.records] == [
        str(stopped / f"checkpoint-{step:06d}") for step in (STOP, 3)
    ]


# -- full disks --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_limit_on_the_size_of_files(moe: Path, text: Path, whole: Callable[[str], Path], stopped: Path) -> None:
    words = train_words(moe, stopped, text, **SHORT, resume=True)
    code, said = Command(words, stopped.parent / "heard", partial(limit_files, 1_000_000)).end()
    kept = f"checkpoint-{STOP:06d} is kept, and --resume continues from it"
    assert code == 1
    assert len(said) == 1
    assert os.strerror(errno.EFBIG) in said[0] or "File too large" in said[0]
    assert said[0].endswith(kept)
    assert list(saved(stopped)) == [3, STOP]
    check_same(run_train(moe, stopped, text, **SHORT, resume=True), whole("f32"))


def on_a_small_disk(moe: Path, text: Path, whole: Path, place: Path, size: int) -> None:
    """Room for a checkpoint and a half."""
    torch.set_num_threads(1)
    own_mounts()
    mount(place, f"size={size * 3 // 2}")
    with pytest.raises(StagingError) as caught:
        run_train(moe, place / "out", text, **SHORT)
    assert os.strerror(errno.ENOSPC) in str(caught.value)
    assert str(caught.value).endswith("checkpoint-000003 is kept, and --resume continues from it")
    assert list(saved(place / "out")) == [3]
    assert len(lines(place / "out")) == 6
    mount(place, f"remount,size={size * 5}")
    check_same(run_train(moe, place / "out", text, **SHORT, resume=True), whole)


def with_full_metrics(moe: Path, text: Path, whole: Path, place: Path, size: int) -> None:
    """Someone else takes all the room between two checkpoints."""
    torch.set_num_threads(1)
    own_mounts()
    mount(place, f"size={size * 4}")

    def fill() -> None:
        (place / "other").write_bytes(bytes(shutil.disk_usage(place).free))

    with pytest.raises(StagingError) as caught:
        run_train(moe, place / "out", text, observer=Watcher(4, fill), **SHORT)
    assert os.strerror(errno.ENOSPC) in str(caught.value)
    assert str(caught.value).endswith("checkpoint-000003 is the last good checkpoint")
    (place / "other").unlink()
    check_same(run_train(moe, place / "out", text, **SHORT, resume=True), whole)


@pytest.mark.parametrize("task", [on_a_small_disk, with_full_metrics])
def test_a_full_disk(
    moe: Path, text: Path, whole: Callable[[str], Path], tmp_path: Path, task: Callable[..., None]
) -> None:
    if not can_mount():
        pytest.skip("mounting takes root, and unshare")
    (tmp_path / "disk").mkdir()
    size = sum(map(len, contents(whole("f32") / f"checkpoint-{STEPS:06d}").values()))
    process = FORKS.Process(target=task, args=(moe, text, whole("f32"), tmp_path / "disk", size))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert list((tmp_path / "disk").iterdir()) == []


# -- what is no number -------------------------------------------------------------------------------------------------


def check_numbers(out: Path, count: int) -> None:
    """The metrics of the first `count` steps are there, and nothing in them is NaN, infinite or a made-up zero."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for text in (out / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text, parse_constant=refuse)
        assert line["loss"] > 0 if line["step"] else line["eval_loss"] > 0
    assert len(lines(out)) == count
    for path in saved(out).values():
        assert all(tensor.isfinite().all() for tensor in load_file(path / "model.safetensors").values())


@pytest.mark.parametrize(
    ("part", "value", "found", "evaluated"),
    [
        ("block_sparse_moe.gate", math.nan, "layers.0.mlp.gate", False),
        ("experts.3.w2", math.inf, "layers.0.mlp.experts.down_proj", True),
        ("embed_tokens", math.nan, "embed_tokens", False),
    ],
)
def test_a_weight_that_is_no_number(
    moe: Path, text: Path, copy_of: Callable[[Path], Path], tmp_path: Path, part: str, value: float, found: str,
    evaluated: bool,
) -> None:  # fmt: skip
    """The last one is that of a token which the text does not have; the head shares it."""
    model = copy_of(moe)
    file = next(model.glob("*.safetensors"))
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if part in name)
    tensors[name][-1, -1] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UpcycleError, match=rf"^step [01]: .*the weight \S*{found}.*; there is no checkpoint yet$"):
        run_train(model, tmp_path / "out", text, **{**SHORT, "eval_split": 0.1 if evaluated else 0.0})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("every", [1, 100])
def test_weights_that_overflow(moe: Path, text: Path, tmp_path: Path, every: int) -> None:
    """Ten million times as large after every step."""
    fields = {
        **SHORT, "lr": 10.0, "weight_decay": 1e6, "schedule": "constant", "warmup_steps": 0, "eval_every": every,
        "save_every": 1,
    }  # fmt: skip
    with pytest.raises(UpcycleError, match=r"^step \d: .*checkpoint-00000\d is the last good checkpoint$") as caught:
        run_train(moe, tmp_path / "out", text, **fields)
    step = int(str(caught.value).split()[1].rstrip(":"))
    check_numbers(tmp_path / "out", step - 1)
    assert max(saved(tmp_path / "out")) == int(str(caught.value).split("checkpoint-")[1][:6]) == step - 1
    with pytest.raises(UpcycleError) as again:
        run_train(moe, tmp_path / "out", text, **fields, resume=True)
    assert str(again.value) == str(caught.value)


@contextmanager
def modules() -> Iterator[dict[str, nn.Module]]:
    """Yield the modules that run in this process."""
    seen: dict[str, nn.Module] = {}

    def see(module: nn.Module, _args: Any) -> None:
        seen[type(module).__name__] = module

    handle = nn.modules.module.register_module_forward_pre_hook(see)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_number_that_is_lost_while_training(
    moe: Path, text: Path, whole: Callable[[str], Path], tmp_path: Path, step: int
) -> None:
    """After a step that is saved, any, and the one before the last."""
    with modules() as seen:

        def lose() -> None:
            with torch.no_grad():
                next(seen["MixtralTopKRouter"].parameters())[1, 2] = math.nan

        with pytest.raises(UpcycleError) as caught:
            run_train(moe, tmp_path / "out", text, observer=Watcher(step, lose), **SHORT)
    said = str(caught.value)
    last = step - step % 3 if step != 3 else None
    kept = f"checkpoint-{last:06d} is the last good checkpoint" if last else "there is no checkpoint yet"
    assert said.startswith((f"step {step}: ", f"step {step + 1}: "))
    assert "the weight model.layers.3.mlp.gate.weight" in said
    assert said.endswith(kept)
    assert list(saved(tmp_path / "out")) == list(range(3, (last or 0) + 1, 3))
    check_numbers(tmp_path / "out", step)
    check_same(run_train(moe, tmp_path / "out", text, **SHORT, resume=True), whole("f32"))


STOPPING = "upcycle: stopping after this step, which is then saved; a second signal ends at once"

# -- SIGTERM and SIGINT ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "word", "kind"),
    [(signal.SIGTERM, 143, "terminated", "f32"), (signal.SIGINT, 130, "interrupted", "lora")],
)
def test_a_signal(
    moe: Path, text: Path, whole: Callable[[str], Path], fields_of: Callable[[str], dict[str, Any]], tmp_path: Path,
    number: int, code: int, word: str, kind: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    run = Command(train_words(moe, out, text, **fields_of(kind)), tmp_path / "heard")
    run.wait_for_step(4)
    run.send(number)
    done = run.end()
    end = f"upcycle: {word}; step {steps(out)} is saved in {out}, --resume goes on from there"
    assert done == (code, [STOPPING, end])
    assert max(saved(out)) == steps(out) < STEPS
    check_same(run_train(moe, out, text, **fields_of(kind), resume=True), whole(kind))


def test_a_signal_to_one_of_two_processes(moe: Path, text: Path, whole: Callable[[str], Path], tmp_path: Path) -> None:
    """They agree on the step after which they save, once."""
    out = tmp_path / "out"
    main, other = two_processes(train_words(moe, out, text, **{**SHORT, "batch_size": 1}), tmp_path)
    other.wait_for_step(4)
    other.send(signal.SIGTERM)
    assert (main.end()[0], other.end()[0]) == (143, 143)
    check_saved_once(out, main.heard.read_text() + other.heard.read_text())
    run_train(moe, out, text, **SHORT, resume=True)
    assert losses(out) == pytest.approx(losses(whole("f32")), rel=0, abs=1e-6)


def check_saved_once(out: Path, said: str) -> None:
    """The last step that was told is the one that is saved, by one of the processes."""
    last = max(saved(out))
    assert 4 <= last == steps(out) < STEPS
    assert said.count(f"checkpoint-{last:06d} is saved") == 1
    assert f"upcycle: terminated; step {last} is saved in {out}, --resume goes on from there\n" in said


def children_of(number: int) -> list[str]:
    return Path(f"/proc/{number}/task/{number}/children").read_text().split()


@pytest.mark.slow  # it imports everything in three processes
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here")
def test_a_signal_to_one_of_two_that_accelerate_started(moe: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = launched(train_words(moe, out, text, **{**SHORT, "batch_size": 1}))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: steps(out) >= 4)
        workers = [int(number) for number in children_of(process.pid)]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    check_saved_once(out, said)


def test_a_second_signal_stops_at_once(moe: Path, text: Path, whole: Callable[[str], Path], tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_train(moe, tmp_path / "out", text, observer=Watcher(4, twice), **SHORT)
    assert signal.getsignal(signal.SIGINT) is before
    assert list(saved(tmp_path / "out")) == [3]
    check_same(run_train(moe, tmp_path / "out", text, **SHORT, resume=True), whole("f32"))


def interrupt_twice_while_saving() -> None:
    """In the checkpoint of step 6. There is no way back: for processes that end."""

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and "checkpoint-000006.partial/state/step.json" in str(args[0]):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    sys.addaudithook(audit)


def test_a_second_signal_while_it_saves(moe: Path, text: Path, whole: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = Command(train_words(moe, out, text, **SHORT), tmp_path / "heard", interrupt_twice_while_saving)
    end = "upcycle: interrupted; checkpoint-000003 is kept, and --resume continues from it"
    assert run.end() == (130, [STOPPING, end])
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-000003"]
    check_same(run_train(moe, out, text, **SHORT, resume=True), whole("f32"))


# -- what may go on ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1e-3}, "another one; found recipe.lr 0.0003, expected recipe.lr 0.001; --resume"),
        ({"batch_size": 3}, "another one; found batch 2, expected batch 3;"),
        ({"train": "lora"}, 'found recipe.train "all", expected recipe.train "lora"'),
        ({"resume": False}, "a training run is there; --resume continues it, --overwrite starts again"),
        ({"max_steps": STOP - 1}, f"more steps than it is asked for; found {STOP}, expected at most --max-steps 4"),
    ],
)
def test_resuming_another_training_is_refused(
    moe: Path, text: Path, stopped: Path, changes: dict[str, Any], message: str
) -> None:
    before = told(stopped)
    with pytest.raises(InputError) as caught:
        run_train(moe, stopped, text, **{**SHORT, "resume": True, **changes})
    assert message in str(caught.value)
    assert told(stopped) == before
    assert list(saved(stopped)) == [3, STOP]


def test_resuming_with_another_model_is_refused(
    moe: Path, text: Path, stopped: Path, copy_of: Callable[[Path], Path]
) -> None:
    other = copy_of(moe)
    flipped(next(other.glob("*.safetensors")))
    with pytest.raises(InputError, match=r"another one; found .*expected .*recipe.model"):
        run_train(other, stopped, text, **SHORT, resume=True)


def test_out_that_is_something_else_is_refused(moe: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds no training run; found thesis.tex"):
        run_train(moe, tmp_path / "out", text, **SHORT, resume=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_more_steps_are_allowed(moe: Path, text: Path, stopped: Path) -> None:
    run_train(moe, stopped, text, **{**SHORT, "max_steps": STEPS + 2}, resume=True)
    assert [line["step"] for line in lines(stopped)] == list(range(1, STEPS + 3))
    assert lines(stopped)[-1]["lr"]["rest"] == pytest.approx(3e-5, rel=0.5)  # the end of the longer cosine


def test_other_intervals_are_allowed(moe: Path, text: Path, whole: Callable[[str], Path], stopped: Path) -> None:
    run_train(moe, stopped, text, **{**SHORT, "save_every": 7, "eval_every": 2, "keep": 5}, resume=True)
    assert list(saved(stopped)) == [3, STOP, 7, 8]
    assert losses(stopped) == losses(whole("f32"))
    assert [line["step"] for line in lines(stopped) if "eval_loss" in line] == [4, 6, 8]


def test_another_cut_of_the_batch_is_allowed(
    moe: Path, text: Path, whole: Callable[[str], Path], stopped: Path
) -> None:
    run_train(moe, stopped, text, **{**SHORT, "batch_size": 1, "grad_accum": 2}, resume=True)
    for name in ("loss", "balance_loss", "z_loss"):
        ours, theirs = ([line[name] for line in lines(out)] for out in (stopped, whole("f32")))
        assert ours == pytest.approx(theirs, rel=0, abs=1e-6)


def test_a_finished_training_is_resumed(moe: Path, text: Path, whole: Callable[[str], Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole("lora"), tmp_path / "out"))
    run_train(moe, out, text, **SHORT, **KINDS["lora"], resume=True)
    check_same(out, whole("lora"))


# -- the metrics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 200])
def test_metrics_that_are_cut_off(moe: Path, text: Path, whole: Callable[[str], Path], stopped: Path, cut: int) -> None:
    """Within their last line, which is of a step that is done again."""
    shutil.rmtree(stopped / f"checkpoint-{STOP:06d}")
    path = stopped / "metrics.jsonl"
    texts = path.read_text().splitlines(keepends=True)
    path.write_text("".join(texts[:-1]) + texts[-1][:cut])
    check_same(run_train(moe, stopped, text, **SHORT, resume=True), whole("f32"))
    assert [line["step"] for line in lines(stopped)] == list(range(1, STEPS + 1))
    if cut == 1:
        assert stages.run(Plot(metrics=str(stopped)))


# -- what transformers' own Trainer does instead -----------------------------------------------------------------------


def small_mixtral(coefficient: float) -> MixtralForCausalLM:
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=coefficient,
        )
    )  # fmt: skip


def logged_by_trainer(model: MixtralForCausalLM, place: Path, accumulation: int = 1) -> float:
    """The loss that it logs for a step in which every micro-batch is the same sequence."""
    ids = torch.arange(32)
    arguments = TrainingArguments(
        str(place), max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=accumulation,
        logging_steps=1, learning_rate=0.0, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * accumulation)
    trainer.train()
    return float(trainer.state.log_history[0]["loss"])


def test_trainer_counts_the_balance_loss_once_for_every_micro_batch(tmp_path: Path) -> None:
    """Four times the same sequence: the mean is that of one, and Trainer gives CE + 4 aux for CE + aux.

    `upcycle train` gives the same losses however a batch is cut: tests/train/test_train.py.
    """
    model = small_mixtral(1.0)
    with torch.no_grad():
        ids = torch.arange(32)[None]
        out = model(input_ids=ids, labels=ids)
    once = float(out.loss)  # CE + 1.0 aux
    aux = float(out.aux_loss)
    assert aux > 1.9  # 2 is even: transformers counts each of the two choices in full
    assert logged_by_trainer(model, tmp_path / "1") == pytest.approx(once, abs=1e-3)
    assert logged_by_trainer(model, tmp_path / "4", 4) == pytest.approx(once + 3 * aux, abs=1e-3)


def test_trainer_logs_nan_as_zero(tmp_path: Path) -> None:
    """logging_nan_inf_filter, on if nothing is said; it goes on. `upcycle train` stops: see above."""
    model = small_mixtral(0.0)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    assert logged_by_trainer(model, tmp_path) == 0.0


def test_a_wrong_line_in_the_data_loses_no_step(moe: Path, tmp_path: Path) -> None:
    data = tmp_path / "late.jsonl"
    data.write_text((json.dumps({"text": "In the beginning " * 10}) + "\n") * 300 + "{oops}\n")
    with pytest.raises(InputError, match=r"late\.jsonl:301: not valid JSON"):
        run_train(moe, tmp_path / "out", data, seq_len=128, batch_size=4, max_steps=300, shuffle=0, lr=1e-4)
    done = steps(tmp_path / "out")
    assert done > 1
    assert (tmp_path / "out" / f"checkpoint-{done:06d}" / "checkpoint.json").is_file()
