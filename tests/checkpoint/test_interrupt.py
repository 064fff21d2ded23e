"""Whatever stops a conversion, and wherever: OUT is absent or as it was, and --resume gives the same bytes."""

import ctypes
import errno
import json
import os
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

from tests.conftest import contents, edit_json, run_convert
from tests.faults import NoExchange, every, kill_everywhere, killed_at, no_sync, preload
from tests.models import SMOLLM2_135M, save_header
from upcycle.checkpoint import writer
from upcycle.checkpoint.journal import STATE_FILE, Part, is_bookkeeping
from upcycle.checkpoint.place import staging_path
from upcycle.checkpoint.staging import Staging, open_staging
from upcycle.checkpoint.writer import copy_range
from upcycle.errors import CheckpointError, InputError, StagingError

REQUEST: dict[str, Any] = {"experts": 2, "max_shard_size": "13KB", "workers": 1}
"""Five shards of the plain llama."""

JOURNAL = Part().journal

assert no_sync  # a fixture
preload("tests.checkpoint.test_interrupt")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work" / "moe"


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a conversion gives that nothing interrupts."""
    made = contents(run_convert(tiny, tmp_path_factory.mktemp("finished") / "moe", **REQUEST))
    assert sum(name.endswith(".safetensors") for name in made) == 5
    return made


@pytest.fixture
def interrupted(tiny: Path, out: Path) -> Path:
    """The staging directory of a conversion that was killed in the middle."""
    return kill_in_the_middle(tiny, out)


def kill_in_the_middle(model: Path, out: Path) -> Path:
    """Kill a conversion after two shards at least; return the staging directory."""
    step = 60  # of 96
    while len(journal(out)) < 2:
        assert killed_at(step, partial(convert_in, model, {"overwrite": True, **REQUEST}), out.parent) is None
        step += 5
    return staging_path(out)


def journal(out: Path) -> list[str]:
    """The complete lines of the journal, one for every finished shard."""
    path = staging_path(out) / JOURNAL
    return path.read_text().split("\n")[:-1] if path.exists() else []


def has_begun(out: Path) -> bool:
    """Whether the staging directory says which work it is."""
    path = staging_path(out) / STATE_FILE
    return path.exists() and path.read_text().endswith("\n")


def beside(out: Path) -> set[str]:
    return {path.name for path in out.parent.iterdir()} - {out.name}


# -- stopping at a step -----------------------------------------------------------------------------------------------


def convert_in(model: Path, fields: dict[str, Any], place: Path) -> None:
    """Convert below `place`."""
    run_convert(model, place / "moe", **fields)


def kill_everywhere_in(
    model: Path, out: Path, check: Callable[[], None], every: int, old: dict[str, bytes] | None = None, **fields: Any
) -> int:
    """Kill conversions into `out`, which holds `old` at first; return how many changes to the disk one makes."""

    def prepare() -> Path:
        _lay_out(out, old)
        return out.parent

    work = partial(convert_in, model, {**REQUEST, **fields})
    return kill_everywhere(prepare, work, lambda _: check(), every=every)


def _lay_out(out: Path, files: dict[str, bytes] | None) -> None:
    shutil.rmtree(out.parent)
    out.parent.mkdir()
    if files is not None:
        out.mkdir()
        for name, data in files.items():
            (out / name).write_bytes(data)


@every
@pytest.mark.usefixtures("no_sync")
def test_killed_at_any_step(tiny: Path, out: Path, finished: dict[str, bytes], every: int) -> None:
    unfinished = 0

    def check() -> None:
        nonlocal unfinished
        if out.exists() and not (out / STATE_FILE).exists():  # only directories were still to be synced
            assert contents(out) == finished
        else:
            assert beside(out) <= {"moe.partial"}
            if out.exists():  # renamed: only the state file was still to go
                assert model_files(out) == finished
            elif has_begun(out):
                unfinished += 1
                check_refused(tiny, out)
            run_convert(tiny, out, resume=True, **REQUEST)
            assert contents(out) == finished
        assert beside(out) == set()

    assert kill_everywhere_in(tiny, out, check, every) > 70
    assert unfinished > 60 // every, "the steps should be many"


def check_refused(model: Path, out: Path) -> None:
    """Without an option, what is unfinished is left alone."""
    with pytest.raises(InputError) as caught:
        run_convert(model, out, **REQUEST)
    assert str(caught.value) == (
        f"{staging_path(out)}: an unfinished output is there; --resume continues it, --overwrite starts again"
    )


@every
@pytest.mark.usefixtures("no_sync")
def test_killed_at_any_step_of_overwriting(tiny: Path, out: Path, finished: dict[str, bytes], every: int) -> None:
    """The old output stays whole until the new one takes its place; afterwards the next run clears up."""
    old = contents(run_convert(tiny, out, experts=3, workers=1))
    checked = swapped = 0

    def check() -> None:
        nonlocal checked, swapped
        assert beside(out) <= {"moe.partial"}
        swapped += model_files(out) == finished
        assert model_files(out) in (old, finished)
        checked += 1
        run_convert(tiny, out, overwrite=True, resume=checked % 2 == 0, **REQUEST)
        assert contents(out) == finished
        assert beside(out) == set()

    assert kill_everywhere_in(tiny, out, check, every, old, overwrite=True) > 60
    assert swapped > len(old) // every, "the deletion of the old output should have been interrupted too"


@pytest.mark.usefixtures("no_sync")
def test_killed_and_killed_again_while_resuming(tiny: Path, out: Path, finished: dict[str, bytes]) -> None:
    step, runs = 20, 0
    done: list[str] = []
    while killed_at(step, partial(convert_in, tiny, {"resume": True, **REQUEST}), out.parent) is None:
        if out.exists():  # renamed
            assert model_files(out) == finished
            break
        assert journal(out)[: len(done)] == done, "what was finished stays finished"
        done = journal(out)
        step += 2
        runs += 1
    assert runs >= 2  # how many depends on how the threads take turns
    if (out / STATE_FILE).exists():
        run_convert(tiny, out, resume=True, **REQUEST)
    assert contents(out) == finished
    assert beside(out) == set()


def model_files(out: Path) -> dict[str, bytes]:
    """What OUT holds besides journals and locks, which go last."""
    return {name: data for name, data in contents(out).items() if not is_bookkeeping(name)}


def _remove(out: Path) -> None:
    for path in out.iterdir():
        path.unlink()
    out.rmdir()


# -- what --resume takes ----------------------------------------------------------------------------------------------


def test_finished_shards_are_not_written_again(
    tiny: Path, interrupted: Path, out: Path, finished: dict[str, bytes]
) -> None:
    done = [json.loads(line)["shard"] for line in journal(out)]
    assert len(done) >= 2
    inodes = {name: (interrupted / name).stat().st_ino for name in done}
    times = {name: (interrupted / name).stat().st_mtime_ns for name in done}
    run_convert(tiny, out, resume=True, **REQUEST)
    assert {name: (out / name).stat().st_ino for name in done} == inodes
    assert {name: (out / name).stat().st_mtime_ns for name in done} == times
    assert contents(out) == finished


def test_resume_without_anything_to_resume(tiny: Path, out: Path, finished: dict[str, bytes]) -> None:
    assert contents(run_convert(tiny, out, resume=True, **REQUEST)) == finished


def test_overwrite_starts_again(tiny: Path, interrupted: Path, out: Path, finished: dict[str, bytes]) -> None:
    (interrupted / "model-00001-of-00009.safetensors").write_bytes(b"of another plan")
    assert contents(run_convert(tiny, out, overwrite=True, **REQUEST)) == finished
    assert beside(out) == set()


@pytest.mark.parametrize(
    "line", [b"{", b'{"shard": "model-00003-of-00005.safetens', b"\x00" * 100], ids=["brace", "line", "zeros"]
)
def test_a_torn_last_line_of_the_journal(
    tiny: Path, interrupted: Path, out: Path, finished: dict[str, bytes], line: bytes
) -> None:
    with (interrupted / JOURNAL).open("ab") as file:
        file.write(line)
    assert contents(run_convert(tiny, out, resume=True, **REQUEST)) == finished
    assert beside(out) == set()


def test_a_journal_cut_anywhere(tiny: Path, out: Path, interrupted: Path, finished: dict[str, bytes]) -> None:
    saved = out.parent.parent / "saved"
    interrupted.rename(saved)
    cuts = [(name, whole[:n]) for name in (STATE_FILE, JOURNAL) for whole in [(saved / name).read_bytes()]
            for n in range(0, len(whole), 37)]  # fmt: skip
    for name, cut in cuts:
        shutil.copytree(saved, interrupted)
        (interrupted / name).write_bytes(cut)
        assert contents(run_convert(tiny, out, resume=True, **REQUEST)) == finished
        assert beside(out) == set()
        _remove(out)


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_shard_of_the_journal_that_is_not_there(
    tiny: Path, interrupted: Path, out: Path, finished: dict[str, bytes], damage: str
) -> None:
    shard = interrupted / json.loads(journal(out)[0])["shard"]
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1])
    assert contents(run_convert(tiny, out, resume=True, **REQUEST)) == finished


@pytest.fixture
def own(tiny: Path, copy_of: Callable[[Path], Path]) -> Path:
    """A model that a test may change, with a tokenizer."""
    model = copy_of(tiny)
    (model / "tokenizer.json").write_text("{}")
    return model


def changed_weights(model: Path, fields: dict[str, Any]) -> None:  # noqa: ARG001
    """Another value, the same header and size."""
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1))


def changed_header(model: Path, fields: dict[str, Any]) -> None:  # noqa: ARG001
    path = model / "model.safetensors"
    before = path.stat()
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes((size + 8).to_bytes(8, "little") + data[8 : 8 + size] + b" " * 8 + data[8 + size :])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def changed_config(model: Path, fields: dict[str, Any]) -> None:  # noqa: ARG001
    edit_json(model / "config.json", rms_norm_eps=1e-3)


def changed_tokenizer(model: Path, fields: dict[str, Any]) -> None:  # noqa: ARG001
    (model / "tokenizer.json").write_text("[]")
    os.utime(model / "tokenizer.json", ns=(1, 1))


def removed_tokenizer(model: Path, fields: dict[str, Any]) -> None:  # noqa: ARG001
    (model / "tokenizer.json").unlink()


def another_seed(model: Path, fields: dict[str, Any]) -> None:  # noqa: ARG001
    fields["seed"] = 1


def more_experts(model: Path, fields: dict[str, Any]) -> None:  # noqa: ARG001
    fields["experts"] = 3


def other_shards(model: Path, fields: dict[str, Any]) -> None:  # noqa: ARG001
    fields["max_shard_size"] = "30KB"


@pytest.mark.parametrize(
    "change",
    [
        changed_weights, changed_header, changed_config, changed_tokenizer, removed_tokenizer, another_seed,
        more_experts, other_shards,
    ],
)  # fmt: skip
def test_resume_takes_the_same_work_only(
    own: Path, out: Path, change: Callable[[Path, dict[str, Any]], None]
) -> None:  # fmt: skip
    fields = dict(REQUEST)
    kill_in_the_middle(own, out)
    before = contents(out.parent)
    change(own, fields)
    with pytest.raises(InputError) as caught:
        run_convert(own, out, resume=True, **fields)
    error = caught.value
    assert error.what == "the unfinished output there has another plan or another source"
    assert (error.where, error.hint) == (str(staging_path(out)), "--overwrite without --resume starts again")
    assert (error.found, error.expected) != (None, None)
    assert error.found != error.expected
    assert contents(out.parent) == before
    run_convert(own, out, overwrite=True, **fields)
    assert contents(out) == contents(run_convert(own, out.with_name("fresh"), **fields))


def test_workers_may_change_between_kill_and_resume(
    tiny: Path, interrupted: Path, out: Path, finished: dict[str, bytes]
) -> None:
    assert interrupted.is_dir()
    assert contents(run_convert(tiny, out, resume=True, **{**REQUEST, "workers": 4})) == finished


# -- faults that do not kill ------------------------------------------------------------------------------------------


def test_a_source_that_becomes_shorter_meanwhile(own: Path, out: Path) -> None:
    from upcycle.convert.convert import convert
    from upcycle.requests import Convert

    def someone_truncates(_total: int) -> Callable[[int], None]:
        os.truncate(own / "model.safetensors", 9000)
        return lambda _: None

    with pytest.raises(CheckpointError) as caught:
        convert(own, Convert(model=str(own), out=str(out), **REQUEST), someone_truncates)
    assert caught.value.what == "ends before its header says"
    assert caught.value.where == str(own / "model.safetensors")
    assert list(out.parent.iterdir()) == []


# -- moving bytes -----------------------------------------------------------------------------------------------------


def refuses(code: int) -> Callable[..., int]:
    def call(*_args: Any) -> int:
        raise OSError(code, os.strerror(code))

    return call


def returns_zero(*_args: Any) -> int:
    return 0


def one_byte(source: int, target: int, size: int, source_offset: int, target_offset: int) -> int:  # noqa: ARG001
    return REAL_COPY(source, target, 1, source_offset, target_offset)


def sometimes(source: int, target: int, size: int, source_offset: int, target_offset: int) -> int:
    """Works for a while, does less than it is asked, and then says that it cannot."""
    if source_offset % 7 == 3:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return REAL_COPY(source, target, max(1, size // 3), source_offset, target_offset)


REAL_COPY = os.copy_file_range
COPIES: dict[str, Callable[..., int] | None] = {
    "absent": None,
    **{
        name: refuses(getattr(errno, name))
        for name in ("EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP", "EBADF", "EPERM", "ETXTBSY")
    },
    "zero": returns_zero,
    "one byte": one_byte,
    "sometimes": sometimes,
}


@pytest.fixture(params=COPIES)
def poor_copy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel whose copy_file_range is not there, or fails in one of the ways in which kernels do."""
    function = COPIES[request.param]
    if function is None:
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", function)
    return str(request.param)


@pytest.mark.usefixtures("poor_copy")
def test_the_portable_copy_gives_the_same_bytes(tiny: Path, out: Path, finished: dict[str, bytes]) -> None:
    assert contents(run_convert(tiny, out, **REQUEST)) == finished


@pytest.mark.usefixtures("poor_copy")
@pytest.mark.parametrize(
    ("source_offset", "target_offset", "count"),
    [(0, 0, 0), (0, 0, 10_000), (5, 4101, 9000), (5, 6, 9000), (4095, 1, 2), (100, 4196, 12_000), (8191, 4095, 4098)],
)
def test_copy_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source_offset: int, target_offset: int, count: int
) -> None:
    monkeypatch.setattr(writer, "BUFFER", 1000)
    monkeypatch.setattr(writer, "STEP", 3000)
    data = os.urandom(20_000)
    (tmp_path / "source").write_bytes(data)
    (tmp_path / "target").write_bytes(b"." * 20_000)
    told: list[int] = []
    with (
        (tmp_path / "source").open("rb", buffering=0) as source,
        (tmp_path / "target").open("rb+", buffering=0) as target,
    ):
        copy_range(source, source_offset, target, target_offset, count, told.append)
    expected = bytearray(b"." * 20_000)
    expected[target_offset : target_offset + count] = data[source_offset : source_offset + count]
    assert (tmp_path / "target").read_bytes() == expected
    assert sum(told) == count


def test_unaligned_ends_are_moved_on_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the blocks between them can be shared: 100 of the first block, whole blocks, and the rest."""
    calls: list[tuple[int, int, int]] = []

    def recorded(source: int, target: int, size: int, source_offset: int, target_offset: int) -> int:
        calls.append((source_offset, target_offset, size))
        return REAL_COPY(source, target, size, source_offset, target_offset)

    monkeypatch.setattr(os, "copy_file_range", recorded)
    (tmp_path / "source").write_bytes(bytes(5 * 4096))
    with (
        (tmp_path / "source").open("rb", buffering=0) as source,
        (tmp_path / "target").open("wb", buffering=0) as target,
    ):
        copy_range(source, 3996, target, 4096 + 3996, 100 + 2 * 4096 + 50, lambda _: None)
    assert calls == [(3996, 8092, 100), (4096, 8192, 8242)]


@pytest.mark.usefixtures("poor_copy")
def test_a_source_that_ends_early(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(100))
    with (
        (tmp_path / "source").open("rb", buffering=0) as source,
        (tmp_path / "target").open("wb", buffering=0) as target,
        pytest.raises(CheckpointError) as caught,
    ):
        copy_range(source, 50, target, 0, 51, lambda _: None)
    assert (caught.value.what, caught.value.found) == ("ends before its header says", "end of file at byte 100")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EFBIG])
def test_errors_of_the_disk_are_not_taken_for_a_poor_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "copy_file_range", refuses(code))
    (tmp_path / "source").write_bytes(bytes(100))
    with (
        (tmp_path / "source").open("rb", buffering=0) as source,
        (tmp_path / "target").open("wb", buffering=0) as target,
        pytest.raises(OSError, match=os.strerror(code)) as caught,
    ):
        copy_range(source, 0, target, 0, 100, lambda _: None)
    assert caught.value.errno == code
    assert (tmp_path / "target").stat().st_size == 0


def test_overwriting_where_directories_cannot_be_exchanged(
    tiny: Path, out: Path, finished: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_convert(tiny, out, experts=3)
    monkeypatch.setattr(ctypes, "CDLL", NoExchange)
    assert contents(run_convert(tiny, out, overwrite=True, **REQUEST)) == finished
    assert beside(out) == set()


# -- signals and a second writer --------------------------------------------------------------------------------------

SLOW = {**SMOLLM2_135M, "num_hidden_layers": 4, "vocab_size": 512}
"""Four layers of SmolLM2: 2 * 4 * 3 * 576 * 1536 = 21 million values to draw when there is noise, 16 shards."""

WORDS = ("--experts", "2", "--noise", "0.1", "--workers", "1", "--max-shard-size", "4MB")


@contextmanager
def running(model: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """The real command, with two shards written and many to come."""
    command = [sys.executable, "-m", "upcycle.cli", "convert", str(model), str(out), *WORDS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while len(journal(out)) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_header(SLOW, tmp_path_factory.mktemp("slow"))


@pytest.fixture(scope="module")
def slow_finished(slow: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(run_slow(slow, tmp_path_factory.mktemp("slow_finished") / "moe"))


def run_slow(model: Path, out: Path, **fields: Any) -> Path:
    return run_convert(model, out, experts=2, noise=0.1, max_shard_size="4MB", workers=2, **fields)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals(
    slow: Path, slow_finished: dict[str, bytes], out: Path, number: int, code: int, word: str
) -> None:  # fmt: skip
    with running(slow, out) as process:
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stdout == ""
    assert stderr.strip() == (
        f"upcycle: {word}; what is finished is kept in {staging_path(out)}, and --resume continues from it"
    )
    assert not out.exists()
    assert 2 <= len(journal(out)) < 10, "the work should stop at once"
    assert contents(run_slow(slow, out, resume=True)) == slow_finished
    assert beside(out) == set()


def test_a_second_writer_is_told(slow: Path, slow_finished: dict[str, bytes], out: Path) -> None:
    with running(slow, out) as process:
        for fields in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(StagingError) as caught:
                run_slow(slow, out, **fields)
            assert str(caught.value) == f"{staging_path(out)}: another upcycle process is writing here"
        assert process.poll() is None, "the first one should still be at work"
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert contents(out) == slow_finished
    assert beside(out) == set()


def test_the_lock_goes_with_the_process(slow: Path, slow_finished: dict[str, bytes], out: Path) -> None:
    with running(slow, out) as process:
        process.kill()
        process.wait()
        assert not out.exists()
        assert contents(run_slow(slow, out, resume=True)) == slow_finished


# -- the staging directory by itself ----------------------------------------------------------------------------------


def stopped(out: Path, work: Callable[[Staging], None]) -> None:
    """Open the staging directory and end by Ctrl-C after `work`."""
    with open_staging(out, {"plan": "x"}, resume=False, overwrite=False) as stage:
        work(stage)
        raise KeyboardInterrupt


def test_an_exception_before_the_first_shard_leaves_nothing(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stopped(out, lambda stage: None)  # noqa: ARG005
    assert list(out.parent.iterdir()) == []


def test_an_exception_keeps_what_is_written(out: Path) -> None:
    def one_shard(stage: Staging) -> None:
        (stage.path / "shard").write_bytes(b"1")
        stage.record("shard", {"tensor": "hash"})

    with pytest.raises(KeyboardInterrupt):
        stopped(out, one_shard)
    with open_staging(out, {"plan": "x"}, resume=True, overwrite=False) as stage:
        assert stage.done == {"shard": {"tensor": "hash"}}
        stage.commit()
    assert contents(out.parent) == {"moe/shard": b"1"}


def test_journal_is_pinned(out: Path) -> None:
    with open_staging(out, {"plan": "x", "mtime of a": 1}, resume=False, overwrite=False) as stage:
        stage.record("b", {"t": "0"})
        assert (staging_path(out) / "state.jsonl").read_text() == '{"plan": "x", "mtime of a": 1}\n'
        assert (
            staging_path(out) / "state-00001-of-00001.jsonl"
        ).read_text() == '{"shard": "b", "sha256": {"t": "0"}}\n'
