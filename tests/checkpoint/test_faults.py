"""The disk fails at every call in turn: OUT is as it was, the message is true, and --resume gives the same bytes."""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.test_interrupt import JOURNAL, REQUEST, beside, journal, model_files
from tests.conftest import contents, run_convert
from tests.faults import (
    FORKS,
    KINDS,
    Disk,
    NoExchange,
    can_mount,
    every,
    fail_everywhere,
    mount,
    no_sync,
    own_mounts,
    preload,
)
from upcycle.checkpoint.journal import STATE_FILE, is_bookkeeping
from upcycle.checkpoint.place import REPLACED, staging_path
from upcycle.errors import StagingError

assert no_sync  # a fixture
preload("tests.checkpoint.test_faults")
pytestmark = pytest.mark.usefixtures("no_sync")

KEPT = "; what is finished is kept in {}, and --resume continues from it"
IN_PLACE = "is complete and in place, but the disk failed afterwards"
MOVED = "could be neither replaced nor put back"

# -- what is converted, and what must hold ----------------------------------------------------------------------------


@dataclass
class Scene:
    """A conversion, and what an undisturbed one gives."""

    model: Path
    out: Path
    new: dict[str, bytes]  # what OUT is to hold
    old: dict[str, bytes] = field(default_factory=dict)  # what OUT holds at first
    fields: dict[str, Any] = field(default_factory=lambda: dict(REQUEST))
    parts: tuple[str | None, ...] = (None,)
    before: Callable[["Scene"], None] = lambda _: None
    resume: bool = False
    now: dict[str, bytes] | None = None  # what OUT holds after `before`, if not `old`
    left: list[str | None] = field(default_factory=list)  # parts

    def prepare(self) -> None:
        """Put back what was there at first."""
        self.left = list(self.parts)
        shutil.rmtree(self.out.parent)
        self.out.parent.mkdir()
        if self.old:
            self.out.mkdir()
        for name, data in self.old.items():
            (self.out / name).write_bytes(data)
        self.before(self)

    def run(self, resume: bool = False) -> None:
        """Convert, one part after the other; a second call begins with the part in which the first one failed."""
        options = {"overwrite": bool(self.old), "resume": resume or self.resume, **self.fields}
        while self.left:
            run_convert(self.model, self.out, part=self.left[0], **options)
            self.left.pop(0)

    def held(self) -> dict[str, bytes]:
        """What OUT holds, but for the journals and what it replaced, which go last."""
        found = model_files(self.out) if self.out.exists() else {}
        return {name: data for name, data in found.items() if REPLACED not in name}

    def check_failed(self, error: BaseException, code: int, *, can_remove: bool = True) -> None:
        """What must hold however little is left of the disk."""
        message, staging = str(error), staging_path(self.out)
        assert type(error) is StagingError, repr(error)
        assert "\n" not in message
        assert os.strerror(code) in message
        assert str(self.out.parent) in message
        assert beside(self.out) <= {staging.name}
        if MOVED in message:
            assert not self.out.exists()
            assert contents(staging / REPLACED) == self.old
        elif IN_PLACE in message:
            assert self.held() == self.new
            assert (self.out / STATE_FILE).exists() == message.endswith("; --resume removes what is left over")
        else:
            assert self.held() == (self.old if self.now is None else self.now)
            assert staging.exists() == message.endswith(KEPT.format(staging))
            if staging.exists() and can_remove:
                assert not all(is_bookkeeping(name) for name in contents(staging)), "nothing is kept for nothing"

    def check_mended(self) -> None:
        """The disk is well again: the same command goes on, or starts where nothing was kept."""
        kept = staging_path(self.out).exists() or (self.out / STATE_FILE).exists()
        if kept or self.held() != self.new:
            self.run(resume=kept)
        assert contents(self.out) == self.new
        assert beside(self.out) == set()


def fail_everywhere_in(scene: Scene, kind: str, every: int, *, lasting: bool) -> int:
    """Let calls of a kind fail in turn, in conversions that begin as the scene does."""

    def prepare() -> Path:
        scene.prepare()
        return scene.out.parent

    def check(error: Exception | None, disk: Disk) -> None:
        if error is None:
            assert contents(scene.out) == scene.new
            assert beside(scene.out) == set()
        else:
            scene.check_failed(error, disk.code, can_remove="remove" not in KINDS[kind])
            scene.check_mended()

    return fail_everywhere(prepare, scene.run, check, kind, every=every, lasting=lasting)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work" / "moe"


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """Return a function: fields of a request -> what an undisturbed conversion gives."""

    def make(**fields: Any) -> dict[str, bytes]:
        return contents(run_convert(tiny, tmp_path_factory.mktemp("made") / "moe", **{**REQUEST, **fields}))

    return make


@pytest.fixture(scope="module")
def new(made: Callable[..., dict[str, bytes]]) -> dict[str, bytes]:
    return made()


@pytest.fixture(scope="module")
def old(made: Callable[..., dict[str, bytes]]) -> dict[str, bytes]:
    return made(experts=3, max_shard_size="5GB")


@pytest.fixture(params=["fresh", "overwrite"])
def scene(request: pytest.FixtureRequest, tiny: Path, out: Path, new: dict[str, bytes], old: dict[str, bytes]) -> Scene:
    return Scene(tiny, out, new, old if request.param == "overwrite" else {})


@pytest.fixture
def fresh(tiny: Path, out: Path, new: dict[str, bytes]) -> Scene:
    return Scene(tiny, out, new)


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A C library without renameat2."""
    monkeypatch.setattr(ctypes, "CDLL", NoExchange)


# -- every call, in turn ----------------------------------------------------------------------------------------------

LEAST = {"open": 30, "write": 15, "copy_file_range": 25, "fsync": 18, "truncate": 5, "mkdir": 1, "remove": 4}
"""Kind -> how many of its calls fail a conversion, at least: fewer would mean that the faults no longer reach it."""


@every
@pytest.mark.parametrize("kind", LEAST)
def test_a_call_that_fails_once(scene: Scene, kind: str, every: int) -> None:
    assert fail_everywhere_in(scene, kind, every, lasting=False) >= LEAST[kind] // every


@every
@pytest.mark.parametrize(("kind", "least"), [("space", 40), ("any", 100)])
def test_a_disk_that_fails_for_good(scene: Scene, kind: str, least: int, every: int) -> None:
    assert fail_everywhere_in(scene, kind, every, lasting=True) >= least // every


@pytest.mark.parametrize("lasting", [False, True])
def test_a_rename_that_fails(fresh: Scene, lasting: bool) -> None:
    assert fail_everywhere_in(fresh, "rename", 1, lasting=lasting) == 1


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize(("kind", "lasting"), [("rename", False), ("rename", True), ("remove", True)])
def test_overwriting_by_two_renames(fresh: Scene, old: dict[str, bytes], kind: str, lasting: bool) -> None:
    assert fail_everywhere_in(replace(fresh, old=old), kind, 1, lasting=lasting) >= 2


@every
@pytest.mark.parametrize(("kind", "least"), [("write", 15), ("remove", 5)])
def test_parts(fresh: Scene, kind: str, least: int, every: int) -> None:
    assert fail_everywhere_in(replace(fresh, parts=("1/2", "2/2")), kind, every, lasting=True) >= least // every


@every
def test_computed_tensors(fresh: Scene, made: Callable[..., dict[str, bytes]], every: int) -> None:
    noisy = replace(fresh, fields={**REQUEST, "noise": 0.1}, new=made(noise=0.1))
    assert fail_everywhere_in(noisy, "write", every, lasting=True) >= 27 // every


def test_short_writes(fresh: Scene, made: Callable[..., dict[str, bytes]]) -> None:
    noisy = replace(fresh, fields={**REQUEST, "noise": 0.1}, new=made(noise=0.1))
    noisy.prepare()
    with Disk(noisy.out.parent, "write", 0, greedy=False).installed():
        noisy.run()
    assert contents(noisy.out) == noisy.new


class AtOnce(ThreadPoolExecutor):
    """Whose jobs are all done before anybody looks at the first one."""

    def submit(self, *args: Any, **words: Any) -> Any:
        job = super().submit(*args, **words)
        wait([job])
        return job


def test_a_fault_costs_what_is_in_progress(fresh: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that were finished when the fault is met are recorded, in whichever order they are looked at."""
    monkeypatch.setattr("upcycle.plan.execute.ThreadPoolExecutor", AtOnce)
    small = replace(fresh, fields={**REQUEST, "max_shard_size": "2KB"})
    small.prepare()
    disk = Disk(small.out.parent, "copy_file_range", 27)
    with disk.installed(), pytest.raises(StagingError):
        small.run()
    shards = list(staging_path(small.out).glob("*.safetensors"))
    assert len(shards) > 10
    assert len(journal(small.out)) == len(shards) - 1


# -- once more while it goes on ---------------------------------------------------------------------------------------


def full_at_the_last_shard(scene: Scene) -> None:
    """The last shard is the one that is not finished."""
    disk = Disk(scene.out.parent, "copy_file_range", 27, lasting=True)
    with disk.installed(), pytest.raises(StagingError, match="is kept in"):
        replace(scene, resume=False).run()
    assert len(journal(scene.out)) == 4, "a fault costs what is in progress and no more"


def cut_off_after_the_rename(scene: Scene) -> None:
    """The new output is in place, half of the old one is still there."""
    with Disk(scene.out.parent, "remove", 3, lasting=True).installed(), pytest.raises(StagingError, match=IN_PLACE):
        replace(scene, resume=False).run()
    assert (staging_path(scene.out) / "config.json").exists()


@every
@pytest.mark.parametrize("before", [full_at_the_last_shard, cut_off_after_the_rename])
@pytest.mark.parametrize("resume", [True, False], ids=["resume", "again"])
def test_a_second_fault(
    fresh: Scene, old: dict[str, bytes], before: Callable[[Scene], None], resume: bool, every: int
) -> None:  # fmt: skip
    """While it is resumed, and while it starts again, which clears what the first fault left."""
    again = replace(fresh, old=old, before=before, resume=resume)
    if before is cut_off_after_the_rename and not resume:
        again = replace(again, now=again.new)
    assert fail_everywhere_in(again, "any", every, lasting=True) > 10 // every


def test_a_full_disk_costs_no_finished_shard(fresh: Scene) -> None:
    """The journal's torn last line goes without a write."""
    fresh.prepare()
    full_at_the_last_shard(fresh)
    path = staging_path(fresh.out) / JOURNAL
    before = path.read_bytes()
    path.write_bytes(before + b'{"shard": "model-0')
    with Disk(fresh.out.parent, "space", 1, lasting=True).installed(), pytest.raises(StagingError):
        fresh.run(resume=True)
    assert path.read_bytes() == before
    fresh.check_mended()


# -- the real command -------------------------------------------------------------------------------------------------


def words(scene: Scene, *more: str) -> list[str]:
    options = [word for name, value in scene.fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["convert", str(scene.model), str(scene.out), *options, *more]


@pytest.mark.parametrize(("kind", "at"), [("mkdir", 2), ("open", 1), ("write", 9), ("fsync", 18), ("remove", 1)])
def test_exit_code(
    fresh: Scene, kind: str, at: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from upcycle.cli.main import main

    monkeypatch.setattr(sys, "argv", ["upcycle", *words(fresh)])
    fresh.prepare()
    handler = signal.getsignal(signal.SIGTERM)
    disk = Disk(fresh.out.parent, kind, at, lasting=True)
    try:
        with disk.installed(), pytest.raises(SystemExit) as stopped:
            main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (1, "", 1)
    assert said.err.startswith("upcycle: error: ")
    fresh.check_failed(StagingError(said.err.strip().removeprefix("upcycle: error: ")), disk.code)
    fresh.check_mended()


LIMITED = "from tests.faults import *; limit_files(10_000); from upcycle.cli.main import main; main()"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_limit_on_the_size_of_files(fresh: Scene) -> None:
    """`ulimit -f`: Python ignores SIGXFSZ, so the call fails with EFBIG and does not kill."""
    fresh.prepare()
    done = subprocess.run([sys.executable, "-c", LIMITED, *words(fresh)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    fresh.check_failed(StagingError(done.stderr.strip().removeprefix("upcycle: error: ")), errno.EFBIG)
    fresh.check_mended()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_standard_output(fresh: Scene) -> None:
    fresh.prepare()
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "upcycle.cli", *words(fresh)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == f"upcycle: error: [Errno 28] {os.strerror(errno.ENOSPC)}\n"
    assert contents(fresh.out) == fresh.new


# -- disks that are really full or read-only --------------------------------------------------------------------------


def fails_with(scene: Scene, code: int) -> None:
    with pytest.raises(StagingError) as caught:
        scene.run()
    scene.check_failed(caught.value, code)


def with_other_disks(model: Path, place: Path, new: Path) -> None:
    """What the test below does in its own process."""
    from upcycle.pipeline.stages import convert
    from upcycle.requests import Convert

    own_mounts()
    scene = Scene(model, place / "moe", contents(new))
    scene.left = [None]
    mount(place, "ro")
    fails_with(scene, errno.EROFS)
    assert list(place.iterdir()) == []
    mount(place, "nr_inodes=6")
    fails_with(scene, errno.ENOSPC)
    mount(place, "remount,nr_inodes=1000")
    scene.check_mended()

    mount(place, "size=512k")
    scene.left = [None]

    def someone_fills_it(_total: int) -> Callable[[int], None]:
        (place / "other").write_bytes(bytes(shutil.disk_usage(place).free - 61_440))
        return lambda _: None

    with pytest.raises(StagingError) as caught:
        convert(Convert(model=str(model), out=str(scene.out), **REQUEST), someone_fills_it)
    (place / "other").unlink()
    scene.check_failed(caught.value, errno.ENOSPC)
    mount(place, "remount,size=2m")
    scene.check_mended()


def test_real_disks(tiny: Path, out: Path, new: dict[str, bytes], tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("mounting takes root, and unshare")
    whole = tmp_path / "whole"
    whole.mkdir()
    for name, data in new.items():
        (whole / name).write_bytes(data)
    process = FORKS.Process(target=with_other_disks, args=(tiny, out.parent, whole))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert list(out.parent.iterdir()) == []
