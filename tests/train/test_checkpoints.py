"""Training checkpoints: whatever stops or damages them, the newest complete one is the old one or the new one."""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.conftest import contents
from tests.faults import (
    FORKS,
    Disk,
    NoExchange,
    can_mount,
    every,
    fail_everywhere,
    kill_everywhere,
    limit_files,
    mount,
    no_sync,
    own_mounts,
    preload,
)
from upcycle.checkpoint.header import read_header
from upcycle.errors import CheckpointError, InputError, StagingError
from upcycle.train.saved.checkpoints import Run, open_run
from upcycle.train.saved.directory import MODEL_MARKS, check_out, sweep
from upcycle.train.saved.manifest import find_fault, read_manifest
from upcycle.train.saved.tensors import DTYPES, load_tensors, save_tensors

assert no_sync  # a fixture
preload("tests.train.test_checkpoints")
pytestmark = pytest.mark.usefixtures("no_sync")

FINGERPRINT: dict[str, Any] = {
    "recipe": {"lr": 3e-4, "seed": 0, "max_steps": 300},
    "model": {"name": "tiny", "sha256": "ab12"},
}
MODEL = ("added/words.txt", "config.json", "model.safetensors")
FILES = ("checkpoint.json", *MODEL, "optimizer.safetensors")


def writing(step: int) -> Callable[[Path], None]:
    """What a loop writes after `step` steps: other bytes at every step."""

    def write(directory: Path) -> None:
        save_tensors(directory / "model.safetensors", {"weight": torch.full((300,), float(step))})
        save_tensors(directory / "optimizer.safetensors", {"weight.m": torch.arange(500) + step})
        (directory / "added").mkdir()
        (directory / "added" / "words.txt").write_bytes(b"words of step %d\n" % step)
        (directory / "config.json").write_bytes(b'{"step": %d}' % step)

    return write


def opening(out: Path, *, resume: bool = False, overwrite: bool = False, **changes: Any) -> AbstractContextManager[Run]:
    fields: dict[str, Any] = {"model": out.parent / "model", "fingerprint": FINGERPRINT, **changes}
    return open_run(out, fields.pop("fingerprint"), resume=resume, overwrite=overwrite, **fields)


def held_by(checkpoint: Path | None) -> int:
    """Return what a complete checkpoint was written with."""
    assert checkpoint is not None
    assert find_fault(checkpoint) is None
    weight = load_file(checkpoint / "model.safetensors")["weight"]
    assert load_tensors(checkpoint / "optimizer.safetensors")["weight.m"][0] == weight[0]
    return int(weight[0])


def is_of(checkpoint: Path | None, step: int) -> bool:
    """Whether a checkpoint is complete and holds what was written after `step` steps."""
    return checkpoint is not None and read_manifest(checkpoint).step == step == held_by(checkpoint)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work" / "run"


@pytest.fixture
def two(out: Path) -> Path:
    """A run with checkpoints after 100 and 200 steps."""
    make_two(out)
    return out


def make_two(out: Path) -> None:
    with opening(out) as run:
        run.save(100, writing(100), keep=2)
        run.save(200, writing(200), keep=2)


def names(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


# -- a run that nothing disturbs --------------------------------------------------------------------------------------


def test_what_a_run_leaves(out: Path) -> None:
    with opening(out) as run:
        assert run.newest() is None
        assert names(out) == {"training.json", "run.lock"}
        saved = [run.save(step, writing(step), keep=2) for step in (100, 200, 1_000_000)]
        assert [path.name for path in saved] == ["checkpoint-000100", "checkpoint-000200", "checkpoint-1000000"]
        assert not saved[0].exists()
        assert run.newest() == saved[2]
        assert is_of(saved[2], 1_000_000)
    assert names(out) == {"training.json", "checkpoint-000200", "checkpoint-1000000"}
    assert set(contents(saved[2])) == set(FILES)


def test_the_manifest(two: Path) -> None:
    manifest = json.loads((two / "checkpoint-000200" / "checkpoint.json").read_bytes())
    words = b"words of step 200\n"
    assert manifest["step"] == 200
    assert set(manifest["files"]) == set(FILES) - {"checkpoint.json"}
    assert manifest["files"]["added/words.txt"] == {"size": 18, "sha256": hashlib.sha256(words).hexdigest()}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_others_may_read_what_safetensors_wrote(out: Path) -> None:
    def write(directory: Path) -> None:
        save_file({"a": torch.ones(3)}, directory / "model.safetensors")

    with opening(out) as run:
        path = run.save(1, write, keep=1) / "model.safetensors"
    (out / "ordinary").touch()
    assert path.stat().st_mode == (out / "ordinary").stat().st_mode


def test_the_same_step_again(two: Path) -> None:
    """As at the end of a run that was stopped after its last step: what is written then may be another model."""
    path = two / "checkpoint-000200"
    with opening(two, resume=True) as run:
        run.finish(path, MODEL)
        before = path.stat()
        assert run.save(200, writing(200), keep=2) == path
        assert os.path.samestat(path.stat(), before)
        check_finished(two, 200)
        assert run.save(200, writing(7), keep=2) == path
        assert held_by(path) == 7
        assert not (two / "config.json").exists()
        run.finish(path, MODEL)
        check_finished(two, 7)


def test_everything_is_durable_in_order(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files before the manifest, the manifest before the name, the name before an older checkpoint goes."""
    done: list[str] = []

    def note(name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(place: Any, *rest: Any, **words: Any) -> Any:
            where = Path(f"/proc/self/fd/{place}").readlink() if isinstance(place, int) else place
            done.append(f"{name} {Path(where).relative_to(out.parent)}")
            return real(place, *rest, **words)

        monkeypatch.setattr(os, name, call)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc here")
    with opening(out) as run:
        run.save(1, writing(1), keep=1)
        for name in ("fsync", "replace"):
            note(name)
        run.save(2, writing(2), keep=1)
    staged = "run/checkpoint-000002.partial"
    assert done[:4] == [f"fsync {staged}/{name}" for name in (*MODEL, "optimizer.safetensors")]
    assert done[4:] == [
        f"fsync {staged}/added", f"fsync {staged}/checkpoint.json", f"fsync {staged}",
        f"replace {staged}", "fsync run", "replace run/checkpoint-000001",
    ]  # fmt: skip


# -- damage -----------------------------------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "upcycle"]


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncated, emptied, flipped, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_falls_back(
    two: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = two / "checkpoint-000200"
    damage(path / name)
    with opening(two, resume=True) as run:
        assert is_of(run.newest(), 100)
        assert len(warnings(caplog)) == 1
        assert warnings(caplog)[0].startswith(f"{path} is damaged and passed over: {name}: ")
        assert is_of(run.save(200, writing(200), keep=2), 200)
        assert is_of(run.newest(), 200)


def test_all_are_damaged(two: Path, caplog: pytest.LogCaptureFixture) -> None:
    flipped(two / "checkpoint-000100" / "model.safetensors")
    truncated(two / "checkpoint-000200" / "model.safetensors")
    with opening(two, resume=True) as run:
        assert run.newest() is None
    assert [message.split(": ", 1)[1] for message in warnings(caplog)] == [
        "model.safetensors: found 652 bytes, expected 1,304",
        "model.safetensors: its SHA-256 is not the manifest's",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[]", "wrong JSON document"),
        ('{"step": 200, "files": {"config.json": {"size": "1", "sha256": "0"}}}', "is no manifest of a checkpoint"),
        ('{"step": 200, "step": 200, "files": {}}', "not valid JSON (duplicate key 'step')"),
    ],
)
def test_a_manifest_that_is_none(two: Path, text: str, fault: str) -> None:
    path = two / "checkpoint-000200"
    (path / "checkpoint.json").write_text(text)
    assert find_fault(path) == f"checkpoint.json: {fault}"


def test_a_checkpoint_under_another_name(two: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(two / "checkpoint-000100", two / "checkpoint-000300")
    with opening(two, resume=True) as run:
        assert is_of(run.newest(), 200)
    assert warnings(caplog) == [
        f"{two}/checkpoint-000300 is damaged and passed over: checkpoint.json: it is of step 100"
    ]


def test_a_damaged_one_does_not_count_as_kept(two: Path) -> None:
    truncated(two / "checkpoint-000200" / "model.safetensors")
    with opening(two, resume=True) as run:
        run.save(250, writing(250), keep=2)
        assert (two / "checkpoint-000100").exists()
        run.save(300, writing(300), keep=2)
        assert names(two) >= {"checkpoint-000250", "checkpoint-000300"}
        assert not names(two) & {"checkpoint-000100", "checkpoint-000200"}


def test_what_is_not_sound_when_it_is_read_again_gets_no_name(two: Path) -> None:
    def write(directory: Path) -> None:
        writing(300)(directory)
        truncated(directory / "model.safetensors")

    before = contents(two)
    with opening(two, resume=True) as run, pytest.raises(StagingError) as caught:
        run.save(300, write, keep=1)
    assert str(caught.value) == (
        f"{two}/checkpoint-000300.partial: is not what was written when it is read again "
        "(model.safetensors: truncated); "
        "checkpoint-000200 is kept, and --resume continues from it"
    )
    assert contents(two) == before


def test_rotation_spares_what_it_did_not_make(two: Path, caplog: pytest.LogCaptureFixture) -> None:
    (two / "checkpoint-000100" / "notes.txt").write_text("the good one")
    with opening(two, resume=True) as run:
        run.save(300, writing(300), keep=1)
    assert names(two) == {"training.json", "checkpoint-000100", "checkpoint-000300"}
    assert warnings(caplog) == [f"{two}/checkpoint-000100 is kept: it holds what upcycle did not make"]


def test_failures_of_other_kinds(two: Path) -> None:
    """A mistake stays what it is, a writer's own words are passed on; nothing half written stays."""

    def failing(error: BaseException) -> Callable[[Path], None]:
        def write(directory: Path) -> None:
            (directory / "model.safetensors").write_bytes(b"half")
            raise error

        return write

    kept = "checkpoint-000200 is kept, and --resume continues from it"
    with opening(two, resume=True) as run:
        with pytest.raises(KeyboardInterrupt) as stopped:
            run.save(300, failing(KeyboardInterrupt()), keep=1)
        with pytest.raises(StagingError) as failed:
            run.save(300, failing(SafetensorError("I/O error: No space left\nmore")), keep=1)
    assert stopped.value.__notes__ == [kept]
    assert str(failed.value) == f"{two}/checkpoint-000300: I/O error: No space left; {kept}"
    assert names(two) == {"training.json", "checkpoint-000100", "checkpoint-000200"}


# -- the model at the end ---------------------------------------------------------------------------------------------


def check_finished(out: Path, step: int, placed: Sequence[str] = MODEL) -> None:
    top = {name: data for name, data in contents(out).items() if not name.startswith("checkpoint-")}
    assert set(top) - {"metrics.jsonl", "run.lock"} == {"training.json", *placed}
    assert json.loads(top["training.json"])["files"] == sorted(placed)
    if "added/words.txt" in placed:
        assert top["added/words.txt"] == b"words of step %d\n" % step
    assert int(load_file(out / "model.safetensors")["weight"][0]) == step


def test_finish(two: Path) -> None:
    (two / "metrics.jsonl").write_text("{}\n")
    newest = two / "checkpoint-000200"
    with opening(two, resume=True) as run:
        for _ in range(2):
            run.finish(newest, MODEL)
            check_finished(two, 200)
    assert (two / "model.safetensors").samefile(newest / "model.safetensors")
    (two / "config.json").write_text('{"edited": true}')
    assert is_of(newest, 200), "who edits the model's config does not damage the checkpoint"
    with opening(two, resume=True) as run:
        run.finish(newest, MODEL)
    assert (two / "config.json").read_bytes() == (newest / "config.json").read_bytes()


def test_finish_where_there_are_no_links(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with opening(two, resume=True) as run:
        run.finish(two / "checkpoint-000200", MODEL)
    check_finished(two, 200)
    assert not (two / "model.safetensors").samefile(two / "checkpoint-000200" / "model.safetensors")


def test_a_finished_run_that_goes_on(two: Path) -> None:
    """While it is ahead of the model at the top, that is none; files that the new model has not are removed."""
    with opening(two, resume=True) as run:
        run.finish(two / "checkpoint-000200", MODEL)
    with opening(two, resume=True) as run:
        check_finished(two, 200)
        run.save(300, writing(300), keep=1)
        assert not (two / "config.json").exists()
        run.finish(two / "checkpoint-000300", MODEL[1:])
    check_finished(two, 300, MODEL[1:])
    assert not (two / "added").exists()


def test_nothing_looks_like_a_model_while_its_weights_change(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opening(two, resume=True) as run:
        run.finish(two / "checkpoint-000200", MODEL)
        marked: list[bool] = []
        real = os.replace

        def replacing(source: Any, target: Any) -> None:
            real(source, target)
            if Path(target).name == "model.safetensors":
                marked.append((two / "config.json").exists())

        monkeypatch.setattr(os, "replace", replacing)
        run.finish(two / "checkpoint-000100", MODEL)
    assert marked == [False]
    check_finished(two, 100)


def test_a_copy_that_went_wrong(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(os, "copy_file_range", None)
    if real is None:
        pytest.skip("copies are made by the kernel on Linux only")

    def copy(source: int, target: int, *rest: int) -> int:
        moved = real(source, target, *rest)
        os.pwrite(target, b"\0", 0)
        return int(moved)

    monkeypatch.setattr(os, "copy_file_range", copy)
    with opening(two, resume=True) as run, pytest.raises(StagingError, match=r"words\.txt\.partial: is not what was"):
        run.finish(two / "checkpoint-000200", MODEL)
    assert not (two / "config.json").exists()


# -- who may have OUT -------------------------------------------------------------------------------------------------


def refused(out: Path, **fields: Any) -> str:
    """Return what an InputError says, having made sure that it changed nothing."""
    before = contents(out) if out.is_dir() else None
    with pytest.raises(InputError) as caught, opening(out, **fields):
        pass
    assert (contents(out) if out.is_dir() else None) == before
    return str(caught.value).replace(str(out), "OUT")


def test_a_run_is_in_the_way(two: Path) -> None:
    assert refused(two) == "OUT: a training run is there; --resume continues it, --overwrite starts again"


def test_overwrite(two: Path) -> None:
    with opening(two, resume=True) as run:
        run.finish(two / "checkpoint-000200", MODEL)
    (two / "metrics.jsonl").write_text("{}\n")
    (two / "checkpoint-000300.partial").mkdir()
    (two / "tracker").mkdir()
    (two / "tracker" / "events").touch()
    with opening(two, overwrite=True, fingerprint={"seed": 1}, beside=("metrics.jsonl", "tracker")) as run:
        assert names(two) == {"training.json", "run.lock"}
        assert run.newest() is None
        run.save(5, writing(5), keep=1)
    assert json.loads((two / "training.json").read_bytes())["fingerprint"] == {"seed": 1}


@pytest.mark.parametrize(
    "name", ["notes.txt", "model.safetensors", "checkpoint-000100/notes.txt", "folder/", "checkpoint-1/config.json"]
)
def test_overwrite_leaves_alone_what_upcycle_did_not_make(two: Path, name: str) -> None:
    path = two / name
    (path if name.endswith("/") else path.parent).mkdir(exist_ok=True)
    if not name.endswith("/"):
        path.write_text("mine")
    assert refused(two, overwrite=True) == (
        "OUT: OUT holds what upcycle did not make, so --overwrite leaves it alone; "
        f"found {name.rstrip('/')}; remove it yourself or choose another OUT"
    )


def test_a_record_cannot_lead_out_of_the_directory(two: Path) -> None:
    """`files` are unlinked when another model takes their place."""
    for name in ("../precious", "/precious", "C:\\precious", "a\\..\\..\\precious"):
        record = json.loads((two / "training.json").read_bytes())
        (two / "training.json").write_text(json.dumps({**record, "files": [name]}))
        assert "is no record of a training run" in refused(two, resume=True)


@pytest.mark.parametrize("fields", [{"resume": True}, {"overwrite": True}, {}])
def test_out_is_something_else(out: Path, fields: dict[str, bool]) -> None:
    out.mkdir()
    (out / "upcycle.json").write_text("{}")
    assert refused(out, **fields) == (
        "OUT: OUT is not empty and holds no training run; found upcycle.json; choose another OUT"
    )
    shutil.rmtree(out)
    out.touch()
    assert refused(out, **fields) == "OUT: OUT is not a directory; choose another OUT"


@pytest.mark.parametrize(("model", "data"), [("run/model", ""), (".", ""), ("m", "run/book.txt"), ("m", ".")])
def test_out_overlaps_with_what_is_read(out: Path, model: str, data: str) -> None:
    said = refused(out, model=out.parent / model, data=[out.parent / data] if data else [])
    assert f"OUT and {'the data' if data else 'MODEL'} overlap" in said
    assert not out.exists()


def test_resume_takes_the_same_training(two: Path) -> None:
    other = {"recipe": {"lr": 1e-3, "max_steps": 300, "new": [1]}, "model": FINGERPRINT["model"]}
    assert refused(two, resume=True, fingerprint=other) == (
        "OUT: the training run there is another one; found recipe.lr 0.0003, no recipe.new, recipe.seed 0, "
        "expected recipe.lr 0.001, recipe.new [1], no recipe.seed; --resume takes the options that the run "
        "began with; to go on with others, train one of its checkpoints into a new OUT"
    )


def test_resume_with_what_may_change(two: Path) -> None:
    longer = {**FINGERPRINT, "recipe": {**FINGERPRINT["recipe"], "max_steps": 600}}
    assert "found recipe.max_steps 300, expected recipe.max_steps 600" in refused(two, resume=True, fingerprint=longer)
    with opening(two, resume=True, fingerprint=longer, free=("recipe.max_steps",)) as run:
        assert is_of(run.newest(), 200)
    assert json.loads((two / "training.json").read_bytes())["fingerprint"] == longer
    assert "found recipe.max_steps 600" in refused(two, resume=True)


def test_resume_sweeps_and_begins_where_there_is_nothing(two: Path, out: Path) -> None:
    (two / "checkpoint-000300.partial").mkdir()
    (two / "checkpoint-000300.partial" / "model.safetensors").touch()
    with opening(two, resume=True):
        assert not (two / "checkpoint-000300.partial").exists()
    shutil.rmtree(out)
    with opening(out, resume=True) as run:
        assert run.newest() is None


def test_sweeping_spares_other_partial_files(two: Path) -> None:
    (two / "download.partial").touch()
    (two / "model.safetensors.partial").touch()
    with opening(two, resume=True) as run:
        run.finish(two / "checkpoint-000200", MODEL)
        (two / "added" / "words.txt.partial").touch()
        sweep(two, run.record)
    assert (two / "download.partial").exists()
    assert not (two / "model.safetensors.partial").exists()
    assert not (two / "added" / "words.txt.partial").exists()


@pytest.mark.parametrize("existed", [True, False])
def test_a_run_that_wrote_nothing_leaves_no_trace(out: Path, existed: bool) -> None:
    if existed:
        out.mkdir()
    with pytest.raises(ZeroDivisionError), opening(out):
        stop_with_metrics(out, "")
    assert out.exists() == existed
    assert not existed or names(out) == set()
    with pytest.raises(ZeroDivisionError), opening(out):
        stop_with_metrics(out, "{}\n")
    assert names(out) == {"metrics.jsonl", "training.json"}


def stop_with_metrics(out: Path, text: str) -> None:
    (out / "metrics.jsonl").write_text(text)
    raise ZeroDivisionError


def _hold(out: Path, pipe: Any) -> None:
    with opening(out):
        pipe.send("held")
        pipe.recv()


@pytest.fixture
def held(out: Path) -> Iterator[Any]:
    """Another process that has OUT."""
    here, there = FORKS.Pipe()
    process = FORKS.Process(target=_hold, args=(out, there))
    process.start()
    assert here.recv() == "held"
    yield process
    here.send("go")
    process.join()
    here.close()
    there.close()


def test_two_processes(held: Any, out: Path) -> None:
    for fields in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(StagingError) as caught, opening(out, **fields):
            pass
        assert str(caught.value) == f"{out}: another upcycle process is writing here"
    assert refused(out)
    held.kill()
    held.join()
    with opening(out, resume=True) as run:
        assert run.newest() is None


# -- a disk that fails at every call in turn --------------------------------------------------------------------------


def go_on(out: Path) -> None:
    """The part of a run that is disturbed: from 200 steps to 300, and the model."""
    with opening(out, resume=True) as run:
        run.finish(run.save(300, writing(300), keep=1), MODEL)


def replace(out: Path) -> None:
    """Another checkpoint of the same step."""
    with opening(out, resume=True) as run:
        run.save(200, writing(7), keep=2)


def failure(work: Callable[[Path], None], out: Path) -> str | None:
    """Do `work`; return what went wrong."""
    try:
        work(out)
    except StagingError as error:
        return str(error)
    return None


def start_again(out: Path) -> None:
    """Overwrite the run after it has ended with a model."""
    with opening(out, overwrite=True) as run:
        run.save(1, writing(1), keep=1)


def check_started_again(out: Path) -> None:
    """What holds wherever `start_again` stopped."""
    assert not (out / "config.json").exists() or set(MODEL) <= set(contents(out))
    start_again(out)
    assert names(out) == {"training.json", "checkpoint-000001"}


def check_sound(out: Path) -> None:
    """What holds wherever `go_on` stopped; then it is done again, undisturbed."""
    newest = max(int(path.name[11:]) for path in out.glob("checkpoint-*[0-9]") if find_fault(path) is None)
    assert newest in (200, 300)
    assert newest == 300 or is_of(out / "checkpoint-000100", 100)
    if any((out / mark).exists() for mark in MODEL_MARKS):
        top = {name: (out / name).read_bytes() for name in MODEL}
        assert top == {name: (out / "checkpoint-000300" / name).read_bytes() for name in MODEL}
    check_out(out, resume=False, overwrite=True, beside=())  # nothing is taken for someone else's
    with opening(out, resume=True) as run:
        assert is_of(run.newest(), newest)
    assert not list(out.glob("**/*.partial"))
    go_on(out)
    check_finished(out, 300)
    assert is_of(out / "checkpoint-000300", 300)


def check_replaced(out: Path) -> None:
    """What holds wherever `replace` stopped."""
    check_out(out, resume=False, overwrite=True, beside=())
    with opening(out, resume=True) as run:
        newest = run.newest()
        assert newest == out / "checkpoint-000200"
        assert held_by(newest) in (200, 7)
    assert names(out) == {"training.json", "checkpoint-000100", "checkpoint-000200"}
    assert set(contents(newest)) == set(FILES)


@pytest.fixture
def copies(out: Path) -> Callable[[], Path]:
    """Return a function that lays out the run of `two` anew."""
    first = out.parent / "first"
    make_two(first)

    def copy() -> Path:
        shutil.rmtree(out, ignore_errors=True)
        return Path(shutil.copytree(first, out))

    return copy


Work = Callable[[Path], None]


def fail_everywhere_in(
    copies: Callable[[], Path], kind: str, work: Work, check: Work, every: int, *, lasting: bool = True
) -> int:
    """Let calls of a kind fail in turn, in a run that begins as `copies` lays it out."""
    out = copies()

    def checked(error: Exception | None, disk: Disk) -> None:
        if error is not None:
            said = str(error)
            assert type(error) is StagingError, repr(error)
            assert os.strerror(disk.code) in said or "could be neither replaced nor put back" in said
            assert "\n" not in said
        check(out)

    return fail_everywhere(copies, partial(work, out), checked, kind, every=every, lasting=lasting)


FAULTS = {"open": 20, "write": 9, "fsync": 14, "rename": 5, "mkdir": 2, "remove": 1}
"""Kind -> how many of its calls stop the run, at least: fewer would mean that the faults no longer reach it."""


@every
@pytest.mark.parametrize("kind", FAULTS)
def test_a_call_that_fails_once(copies: Callable[[], Path], kind: str, every: int) -> None:
    assert fail_everywhere_in(copies, kind, go_on, check_sound, every, lasting=False) >= FAULTS[kind] // every


@every
@pytest.mark.parametrize(("kind", "least"), [("space", 14), ("any", 50)])
def test_a_disk_that_fails_for_good(copies: Callable[[], Path], kind: str, least: int, every: int) -> None:
    assert fail_everywhere_in(copies, kind, go_on, check_sound, every) >= least // every


@every
@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize(("kind", "lasting"), [("any", True), ("rename", True), ("rename", False)])
def test_replacing_fails(
    copies: Callable[[], Path], kind: str, lasting: bool, exchange: bool, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(ctypes, "CDLL", NoExchange)
    stopped = fail_everywhere_in(copies, kind, replace, check_replaced, every, lasting=lasting)
    assert stopped >= (25 if kind == "any" else 0 if exchange else 2) // every


def test_a_disk_that_gives_back_other_bytes(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit that flips between the write and the time it is read again."""
    monkeypatch.setattr("upcycle.train.saved.manifest._forget", lambda path: flipped(path) if path.suffix else None)
    before = contents(two)
    with opening(two, resume=True) as run, pytest.raises(StagingError, match="its SHA-256 is not the manifest's"):
        run.save(300, writing(300), keep=1)
    assert contents(two) == before


def kill_everywhere_in(
    copies: Callable[[], Path], work: Work, check: Work, every: int, *, exchange: bool = True
) -> int:  # fmt: skip
    """Kill the work before its changes to the disk; return how many different directories that left."""
    seen: set[frozenset[str]] = set()

    def checked(out: Path) -> None:
        seen.add(frozenset(contents(out)))
        check(out)

    kill_everywhere(copies, work, checked, every=every, exchange=exchange)
    return len(seen)


@every
def test_killed_at_any_step(copies: Callable[[], Path], every: int) -> None:
    """Also while the model is put in place, and while the older checkpoints are removed."""
    assert kill_everywhere_in(copies, go_on, check_sound, every) > (15 if every == 1 else 5)


@every
def test_killed_while_overwriting(copies: Callable[[], Path], every: int) -> None:
    def finished() -> Path:
        out = copies()
        with opening(out, resume=True) as run:
            run.finish(out / "checkpoint-000200", MODEL)
        return out

    assert kill_everywhere_in(finished, start_again, check_started_again, every) > (8 if every == 1 else 3)


@every
@pytest.mark.parametrize("exchange", [True, False])
def test_killed_while_replacing(copies: Callable[[], Path], exchange: bool, every: int) -> None:
    seen = kill_everywhere_in(copies, replace, check_replaced, every, exchange=exchange)
    assert seen > (6 if every == 1 else 2)


# -- disks that are really full, each met by a process of its own ------------------------------------------------------


def in_process(task: Callable[[Path], None], path: Path) -> int | None:
    process = FORKS.Process(target=task, args=(path,))
    process.start()
    process.join()
    code: int | None = process.exitcode
    return code


def _with_a_limit(out: Path) -> None:
    limit_files(3_000)
    assert failure(go_on, out) == (
        f"{out}/checkpoint-000300: {os.strerror(errno.EFBIG)}; "
        "checkpoint-000200 is kept, and --resume continues from it"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_limit_on_the_size_of_files(two: Path) -> None:
    assert in_process(_with_a_limit, two) == 0
    check_sound(two)


@contextmanager
def filled(place: Path, left: int) -> Iterator[None]:
    """Someone else takes all but `left` bytes of the disk."""
    (place / "other").write_bytes(bytes(shutil.disk_usage(place).free - left))
    try:
        yield
    finally:
        (place / "other").unlink()


def _with_full_disks(place: Path) -> None:
    """More and more space is left, in a mount namespace that goes with this process, until it suffices."""
    own_mounts()
    mount(place, "size=512k")
    make_two(place / "run")
    said = []
    for pages in range(16):
        with filled(place, 4096 * pages):
            said.append(failure(go_on, place / "run"))
        if said[-1] is None:
            break
        assert os.strerror(errno.ENOSPC) in said[-1]
        assert said[-1].endswith(" is kept, and --resume continues from it")
        assert is_of(place / "run" / "checkpoint-000200", 200)
    assert len(said) > 5
    check_sound(place / "run")


def test_a_full_disk(out: Path) -> None:
    if not can_mount():
        pytest.skip("mounting takes root, and unshare")
    assert in_process(_with_full_disks, out.parent) == 0
    assert list(out.parent.iterdir()) == []


# -- tensors ----------------------------------------------------------------------------------------------------------


def test_tensors_of_every_kind(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        **{str(dtype): torch.arange(3).to(torch.uint8).view(torch.uint8).to(dtype) for dtype in DTYPES},
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 5, dtype=torch.int16),
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "same": base,
        "same again": base,
        "part": base[1],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "trained": torch.nn.Parameter(torch.tensor([1.0, float("nan"), float("-inf")])),
    }
    path = tmp_path / "state.safetensors"
    save_tensors(path, tensors)
    read_header(path)
    for read in (load_tensors(path), load_file(path) if "torch.float8_e8m0fnu" not in tensors else load_tensors(path)):
        assert set(read) == set(tensors)
        for name, tensor in tensors.items():
            assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape), name
            assert read[name].is_contiguous()
            wanted = tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)
            assert torch.equal(read[name].reshape(-1).view(torch.uint8), wanted), name


def test_safetensors_reads_the_same(tmp_path: Path) -> None:
    """Mixed widths, so that each must lie where its elements can be viewed in place."""
    tensors = {"a": torch.ones(3, dtype=torch.bool), "b": torch.tensor(2.0), "c": torch.ones(5, dtype=torch.bfloat16)}
    save_tensors(tmp_path / "a.safetensors", tensors)
    for spec in read_header(tmp_path / "a.safetensors").tensors.values():
        assert spec.offset % tensors[spec.name].element_size() == 0
    read = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    save_file(tensors, tmp_path / "b.safetensors")
    assert list(load_tensors(tmp_path / "b.safetensors")) == ["b", "c", "a"]


def test_tensors_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    with pytest.raises(ValueError, match=r"tensor 'a': safetensors has no torch.strided torch.complex128"):
        save_tensors(path, {"a": torch.zeros(1, dtype=torch.complex128)})
    with pytest.raises(ValueError, match=r"safetensors has no torch.sparse_coo torch.float32"):
        save_tensors(path, {"a": torch.zeros(3).to_sparse()})
    with pytest.raises(CheckpointError, match="unsafe tensor name"):
        save_tensors(path, {"state/a": torch.zeros(1)})
    assert not path.exists()


def test_loaded_tensors_do_not_need_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.arange(4.0)})
    read = load_tensors(path)["a"]
    path.write_bytes(b"")
    assert read.add_(1).tolist() == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(CheckpointError, match="too short"):
        load_tensors(path)
