"""Nothing needs Linux, a UTF-8 locale or a polite name: what a platform lacks costs time, and never other bytes."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from tests.checkpoint.test_interrupt import REQUEST, beside
from tests.conftest import contents, run_convert
from upcycle.checkpoint.place import REPLACED, staging_path
from upcycle.checkpoint.reader import is_plain_name, open_checkpoint
from upcycle.errors import CheckpointError, InputError, StagingError
from upcycle.pipeline.locate import locate

ROOT = Path(__file__).parents[2]

# -- whole conversions on poorer platforms ----------------------------------------------------------------------------

ABSENT = """
import ctypes, os, pathlib, sys

del os.copy_file_range
sys.modules["fcntl"] = None

class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "renameat2":
            raise AttributeError(name)
        return super().__getattr__(name)

class Stat:
    def __init__(self, found):
        self.found = found
    def __getattr__(self, name):
        if name == "st_blocks":
            raise AttributeError(name)
        return getattr(self.found, name)

ctypes.CDLL = Library
real_stat = pathlib.Path.stat
pathlib.Path.stat = lambda self, **words: Stat(real_stat(self, **words))
"""
"""A Unix without what Linux has: no kernel copy, no locks, no exchange of directories, no count of blocks."""

REFUSED = """
import ctypes, errno, fcntl, itertools, os, stat

def refused(*codes):
    turns = itertools.cycle(codes)
    def call(*args):
        code = next(turns)
        raise OSError(code, os.strerror(code))
    return call

class Library(ctypes.CDLL):
    def __getattr__(self, name):
        return (lambda *args: -1) if name == "renameat2" else super().__getattr__(name)

ctypes.CDLL = Library
fcntl.flock = refused(errno.ENOLCK, errno.EOPNOTSUPP)
fcntl.ioctl = refused(errno.ENOTTY, errno.EOPNOTSUPP)
os.copy_file_range = refused(errno.EXDEV, errno.ENOSYS)
real_fsync, no_directories = os.fsync, refused(errno.EINVAL, errno.EBADF)
os.fsync = lambda file: (no_directories if stat.S_ISDIR(os.fstat(file).st_mode) else real_fsync)(file)
"""
"""A file system on which all of them are there and refuse: as NFS, FUSE and shared folders of machines do."""

KILL = """
import os, signal

def kill_at(call, number):
    count = 0
    def counted(*args):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)
    return counted

os.{name} = kill_at(os.{name}, {number})
"""

RUN = """
import json, os, sys
from upcycle.cli.main import main

codes = []
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = [os.fsdecode(word.encode("utf-8", "surrogateescape")) for word in words]  # as a shell gives them
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps(codes))
"""

WORDS = [word for name, value in REQUEST.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def python(code: str, *words: str, flags: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, errors="replace")


def commands(platform: str, *lines: list[str]) -> list[int]:
    """Run command lines one after another on a platform; return their exit codes."""
    done = python(platform + RUN, json.dumps(lines))
    assert done.returncode == 0, done.stderr
    codes: list[int] = json.loads(done.stdout.splitlines()[-1])
    return codes


def killed(platform: str, call: str, number: int, line: list[str]) -> None:
    """Run a command line that is killed before a call of the operating system."""
    done = python(platform + KILL.format(name=call, number=number) + RUN, json.dumps([line]))
    assert done.returncode == -signal.SIGKILL, done


@pytest.fixture(scope="module")
def new(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What this platform gives."""
    return contents(run_convert(tiny, tmp_path_factory.mktemp("new") / "moe", **REQUEST))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work" / "moe"


poorer = pytest.mark.parametrize("platform", [ABSENT, REFUSED], ids=["absent", "refused"])
linux = pytest.mark.skipif(sys.platform != "linux", reason="takes away what only Linux has")


@linux
@poorer
def test_the_same_bytes(tiny: Path, out: Path, new: dict[str, bytes], platform: str, tmp_path: Path) -> None:
    again = str(run_convert(tiny, tmp_path / "again", experts=3))
    parts = str(tmp_path / "parts")
    lines = [
        ["convert", str(tiny), str(out), *WORDS],
        ["convert", str(tiny), again, *WORDS, "--overwrite"],
        ["convert", str(tiny), parts, *WORDS, "--part", "1/2"],
        ["convert", str(tiny), parts, *WORDS, "--part", "2/2"],
        ["verify", str(tiny), again, "--tensors-only"],
    ]
    assert commands(platform, *lines) == [0] * len(lines)
    assert contents(out) == contents(Path(again)) == contents(Path(parts)) == new
    assert beside(out) == set()


@linux
@poorer
def test_kill_and_resume(tiny: Path, out: Path, new: dict[str, bytes], platform: str) -> None:
    line = ["convert", str(tiny), str(out), *WORDS]
    killed(platform, "fsync", 9, line)
    assert beside(out) == {"moe.partial"}
    assert not out.exists()
    assert commands(platform, line, [*line, "--resume"]) == [2, 0]
    assert contents(out) == new
    assert beside(out) == set()


@linux
@poorer
def test_kill_between_two_renames(tiny: Path, out: Path, new: dict[str, bytes], platform: str) -> None:
    """The old output is in the staging directory, and the next run of any kind puts it back first."""
    old = contents(run_convert(tiny, out, experts=3))
    line = ["convert", str(tiny), str(out), *WORDS]
    killed(platform, "rename", 2, [*line, "--overwrite"])
    assert not out.exists()
    assert contents(staging_path(out) / REPLACED) == old
    assert commands(platform, line) == [2]
    assert contents(out) == old
    assert commands(platform, [*line, "--overwrite", "--resume"]) == [0]
    assert contents(out) == new
    assert beside(out) == set()


@linux
@poorer
@pytest.mark.parametrize("options", [["--resume"], ["--overwrite"]])
def test_kill_after_two_renames(
    tiny: Path, out: Path, new: dict[str, bytes], platform: str, options: list[str]
) -> None:  # fmt: skip
    """The new output is in place and holds the old one, which goes in the next run."""
    run_convert(tiny, out, experts=3)
    line = ["convert", str(tiny), str(out), *WORDS]
    killed(platform, "rmdir", 1, [*line, "--overwrite"])
    assert (out / REPLACED).is_dir()
    assert commands(platform, [*line, *options]) == [0]
    assert contents(out) == new
    assert beside(out) == set()


# -- every use of what not all platforms have -------------------------------------------------------------------------

MODULES = {"fcntl", "grp", "msvcrt", "posix", "pwd", "resource", "syslog", "termios", "tty", "winreg", "_winapi"}
NAMES = {
    *("O_DIRECTORY", "O_DIRECT", "O_NOFOLLOW", "O_TMPFILE", "O_PATH", "O_BINARY", "O_CLOEXEC", "O_SYNC", "O_DSYNC"),
    *(
        "copy_file_range",
        "sendfile",
        "splice",
        "fdatasync",
        "sync",
        "posix_fadvise",
        "posix_fallocate",
        "fork",
        "pread",
    ),
    *("preadv", "pwrite", "pwritev", "statvfs", "mkfifo", "mknod", "chown", "fchmod", "geteuid", "getuid", "setsid"),
    *("killpg", "nice", "uname", "getloadavg", "sched_getaffinity", "sched_setaffinity", "memfd_create", "eventfd"),
    *("st_blocks", "st_blksize", "st_rdev", "CDLL", "renameat2", "is_mount", "fchdir"),
    *("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGXFSZ", "alarm", "setitimer", "sigwait"),
}
PLACES = ("/proc", "/dev/", "/sys/", "/tmp", "/etc")
GUARDED = {
    ("upcycle/moe/memory.py", "available_memory"): {"/proc/meminfo", "/sys/fs/cgroup"},
    ("upcycle/moe/memory.py", "give_back"): {"CDLL"},
    ("upcycle/checkpoint/lock.py", "_lock"): {"fcntl", "msvcrt"},
    ("upcycle/checkpoint/place.py", "exchange"): {"CDLL", "renameat2"},
    ("upcycle/checkpoint/writer.py", "_move_in_kernel"): {"copy_file_range"},
    ("upcycle/checkpoint/writer.py", "shares_blocks"): {"fcntl"},
    ("upcycle/checkpoint/writer.py", "sync_file"): {"fcntl"},
    ("upcycle/plan/execute.py", "_disk_bytes"): {"st_blocks"},
    ("upcycle/train/saved/manifest.py", "_forget"): {"posix_fadvise"},
}
"""Where they are used; each of these functions has another way, and the tests above, or of its module, take it."""


def uses(tree: ast.AST) -> dict[str, set[str]]:
    """Function -> what it uses that not all platforms have; "" is the module itself."""
    found: dict[str, set[str]] = {}

    def visit(node: ast.AST, function: str) -> None:
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        names = _named(node)
        if names:
            found.setdefault(function, set()).update(names)
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):  # a docstring
                visit(child, inside)

    visit(tree, "")
    return found


def _named(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & MODULES
    if isinstance(node, ast.ImportFrom):
        return ({node.module} & MODULES) | ({alias.name for alias in node.names} & (NAMES | MODULES))  # type: ignore[return-value]
    if isinstance(node, ast.Attribute):
        return {node.attr} & NAMES
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value} if node.value in NAMES or node.value.startswith(PLACES) else set()
    return set()


def test_what_not_all_platforms_have_is_used_where_there_is_another_way() -> None:
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in ROOT.glob("upcycle/**/*.py")}
    assert len(trees) > 50
    found = {(path, name): used for path, tree in trees.items() for name, used in uses(tree).items()}
    assert found == GUARDED
    branches = (ast.If, ast.IfExp, ast.Try)
    for path, name in GUARDED:
        body = next(n for n in ast.walk(trees[path]) if isinstance(n, ast.FunctionDef) and n.name == name)
        assert any(isinstance(node, branches) for node in ast.walk(body)), (path, name)


@pytest.mark.parametrize(
    "line",
    [
        "import fcntl", "from os import sendfile", "os.sendfile(a, b, 0, 1)", "os.open(d, os.O_DIRECTORY)",
        "path.stat().st_blocks", "signal.SIGKILL", "open('/proc/self/status')", "getattr(os, 'sync')()",
        "path.is_mount()",
    ],
)  # fmt: skip
def test_another_use_is_found(line: str) -> None:
    code = f'def f():\n    """/proc is fine here."""\n    {line}\n'
    assert set(uses(ast.parse(code))) == {"f"}
    assert uses(ast.parse('def f():\n    """/proc is fine here."""\n    os.fsync(f)\n')) == {}


# -- names ------------------------------------------------------------------------------------------------------------

ELSEWHERE = [
    "C:\\x.safetensors", "C:x.safetensors", "\\\\host\\share\\x.safetensors", "..\\x.safetensors", "a\\b.safetensors",
    "a/b.safetensors", "/x.safetensors", "c:", "..", ".", "", "x\0.safetensors", "x\n.safetensors",
    "\u202ex.safetensors",
]  # fmt: skip
"""Names that lead out of the directory on some platform, or do not show what they are."""

SPECIAL = ["ab:c.safetensors", "CON.safetensors", "nul.safetensors", "com1.x.safetensors", "x.", "x ", "a*.safetensors"]
"""Names that Windows takes for a stream of another file, for a device, or for a name without the last character."""


def with_index(model: Path, name: str) -> Path:
    """Let the index of a model say that all tensors are in the file `name`."""
    tensors = open_checkpoint(model).tensors
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    return model


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_that_lead_elsewhere(tiny: Path, copy_of: Callable[[Path], Path], name: str) -> None:
    assert not is_plain_name(name)
    with pytest.raises(CheckpointError, match="unsafe file name for tensor"):
        open_checkpoint(with_index(copy_of(tiny), name))


@pytest.mark.parametrize("name", SPECIAL)
def test_names_that_windows_takes_for_something_else(name: str) -> None:
    assert not is_plain_name(name)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00001-of-00002.safetensors", "console.safetensors", "modèle 1.safetensors"]
)
def test_names_that_are_fine(name: str) -> None:
    assert is_plain_name(name)
    assert PureWindowsPath(name).name == name


def test_names_that_differ_in_case_alone(tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    """On macOS and Windows both are one file, as with a hard link here, and would give every tensor twice."""
    model = copy_of(tiny)
    first, *others = open_checkpoint(model).tensors
    (model / "model.safetensors").rename(model / "weights.safetensors")
    os.link(model / "weights.safetensors", model / "Weights.safetensors")
    weight_map = {first: "Weights.safetensors", **dict.fromkeys(others, "weights.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="is in two shards"):
        open_checkpoint(model)


@pytest.mark.parametrize("model", ["C:\\models\\x", "C:/models/x", "\\\\host\\share\\x", "models\\x", "c:x"])
def test_a_path_of_another_platform_is_no_hub_id(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such directory") as caught:
        locate(model)
    assert caught.value.where == model
    Path(model).mkdir(parents=True)
    assert locate(model) == Path(model)


RAW = os.fsdecode(b"raw \xff\xe9")
"""Bytes that are no UTF-8, as old archives leave them."""

OUTS = ["with a space", "ünï-文字", "-dash", "a:b", "CON", "trailing.", "%s {0} $HOME", "'quoted\"", "n" * 247]


@linux
@pytest.mark.parametrize("name", [*OUTS, RAW], ids=ascii)
def test_names_of_out(tiny: Path, tmp_path: Path, new: dict[str, bytes], name: str) -> None:
    work = tmp_path / name
    work.mkdir()
    out = work / name
    with pytest.raises(KeyboardInterrupt):
        _interrupted(tiny, out)
    assert contents(run_convert(tiny, out, overwrite=True, **REQUEST)) == new
    assert contents(run_convert(tiny, out, overwrite=True, **REQUEST)) == new
    assert beside(out) == set()


def _interrupted(model: Path, out: Path) -> None:
    from upcycle.convert.convert import convert
    from upcycle.requests import Convert

    def stop(_total: int) -> Any:
        raise KeyboardInterrupt

    convert(model, Convert(model=str(model), out=str(out), **REQUEST), stop)


@linux
@pytest.mark.parametrize("length", [248, 255, 256])
def test_a_name_that_is_too_long(tiny: Path, out: Path, length: int) -> None:
    """A name has 255 bytes, and the staging directory's is longer by 8."""
    with pytest.raises(StagingError, match="File name too long"):
        run_convert(tiny, out.with_name("n" * length), **REQUEST)
    assert list(out.parent.iterdir()) == []


def same_model(found: dict[str, bytes], expected: dict[str, bytes]) -> bool:
    """Whether all is the same but the receipt, which names the model's directory."""
    receipts = {"upcycle.json": b""}
    return {**found, **receipts} == {**expected, **receipts}


@linux
@pytest.mark.parametrize("name", [*OUTS, "n" * 255, RAW], ids=ascii)
def test_names_of_the_model(tiny: Path, out: Path, tmp_path: Path, new: dict[str, bytes], name: str) -> None:
    model = shutil.copytree(tiny, tmp_path / name)
    assert same_model(contents(run_convert(model, out, **REQUEST)), new)


# -- encodings --------------------------------------------------------------------------------------------------------

STRICT = ("-X", "warn_default_encoding", "-W", "error::EncodingWarning")
LOCALES: dict[str, dict[str, str]] = {
    "ascii": {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    "utf-8": {"PYTHONUTF8": "1"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_text_has_an_encoding(tiny: Path, out: Path, new: dict[str, bytes], locale: str) -> None:
    """No file is read or written in the encoding of the locale, and line ends stay what they are."""
    verify = ["verify", str(tiny), str(out), "--tensors-only"]
    lines = [["convert", str(tiny), str(out), *WORDS], verify, ["run", "--list"]]
    done = python(RUN, json.dumps(lines), flags=STRICT, **LOCALES[locale])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 0, 0]"
    assert contents(out) == new
    assert b"\r" not in b"".join(data for name, data in new.items() if name.endswith(".json"))


MOJIBAKE = [
    ("ascii", "modèle"),
    ("utf-8", "modèle"),
    ("utf-8", RAW),
]


@linux
@pytest.mark.parametrize(("locale", "name"), MOJIBAKE, ids=ascii)
def test_an_output_can_be_verified_and_replaced_whatever_the_model_is_called(
    tiny: Path, out: Path, tmp_path: Path, new: dict[str, bytes], locale: str, name: str
) -> None:
    model = str(shutil.copytree(tiny, tmp_path / name))
    line = ["convert", model, str(out), *WORDS]
    lines = [line, [*line, "--overwrite"], ["verify", model, str(out), "--tensors-only"]]
    done = python(RUN, json.dumps(lines), flags=STRICT, **LOCALES[locale])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 0, 0]"
    assert same_model(contents(out), new)
