"""Figures with their targets, as lines on the terminal and as a page of Markdown."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import upcycle


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value."""

    what: str
    value: str
    target: str = ""
    met: bool | None = None  # None where nothing is promised

    @property
    def verdict(self) -> str:
        """`met`, `MISSED`, or nothing."""
        return {None: "", True: "met", False: "MISSED"}[self.met]


@dataclass(frozen=True, slots=True)
class Section:
    """What one group of commands showed."""

    title: str
    about: str
    commands: Sequence[str]
    figures: list[Figure]
    load: list[float] = field(default_factory=lambda: [os.getloadavg()[0]])  # one-minute average, then and at the end

    def finish(self) -> "Section":
        """Note the load now, and print the section."""
        self.load.append(os.getloadavg()[0])
        print(f"\n{self.title}")
        for figure in self.figures:
            target = f"   target {figure.target}: {figure.verdict}" if figure.target else ""
            print(f"  {figure.what:<52} {figure.value}{target}", flush=True)
        return self

    def markdown(self) -> str:
        """Return the section as Markdown."""
        lines = [f"## {self.title}", self.about, "", "```", *self.commands, "```", ""]
        if self.figures:
            lines += ["| figure | measured | target | |", "| --- | --- | --- | --- |"]
            lines += [f"| {f.what} | {f.value} | {f.target} | {f.verdict} |" for f in self.figures]
        load = " to ".join(f"{value:.1f}" for value in self.load)
        return "\n".join([*lines, "", f"Load average: {load}.", ""])


def shown(argv: Sequence[str]) -> str:
    """Return a command for people: the last part of every path."""
    return " ".join(Path(word).name if os.sep in word else word for word in argv)


def megabytes(nbytes: int) -> str:
    """Return bytes as `12.3 MB`."""
    return f"{nbytes / 1e6:.1f} MB"


def listed(values: Sequence[float], digits: int) -> str:
    """Return numbers as `1.23, 4.56`."""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def head(directory: Path) -> str:
    """Return what comes before the sections of the results page."""
    return (
        "# Results\n\n"
        "Written by `make bench` (`python -m benchmarks.convert`, `.train`, `.adapters`, `.push`). Wall time includes\n"
        "the `sync` where a command shows one; memory is the largest resident size, from `wait4`. MB and GB are\n"
        "decimal.\n\n"
        f"Machine: {machine(directory)}.\n\n"
    )


def update(results: Path, sections: Sequence[Section], head: str = "") -> None:
    """Put sections where those of the same titles are in a page, or at its end; `head` is to come before them all."""
    old_head, *old = re.split(r"(?m)^(?=## )", results.read_text(encoding="utf-8")) if results.exists() else [""]
    parts = {text.partition("\n")[0]: text.rstrip("\n") for text in old}
    parts |= {text.partition("\n")[0]: text.rstrip("\n") for text in (section.markdown() for section in sections)}
    results.write_text((head or old_head) + "\n\n".join(parts.values()) + "\n", encoding="utf-8")


def machine(directory: Path) -> str:
    """Return cores, memory, file system and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    kernel = ".".join(platform.release().split(".")[:2])
    versions = [
        f"{platform.system()} {kernel}",
        f"upcycle {upcycle.__version__}",
        f"Python {platform.python_version()}",
    ]
    versions += [f"NumPy {version('numpy')}", _version("cp", "--version"), _version("mkfs.xfs", "-V")]
    return f"{os.cpu_count()} cores, {memory:.0f} GB, {file_system(directory)}; {', '.join(filter(None, versions))}"


def file_system(directory: Path) -> str:
    """Return the type of the file system of `directory`, as /proc/mounts has it."""
    real, found = directory.resolve(), ("", "unknown file system")
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, kind = line.split()[:3]
        if real.is_relative_to(mount) and len(mount) >= len(found[0]):
            found = (mount, kind)
    return found[1]


def _version(program: str, option: str) -> str:
    """Return `program 1.2`, or nothing where there is no such program."""
    try:
        done = subprocess.run([program, option], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    number = re.search(r"\d+(\.\d+)+", done.stdout.splitlines()[0])
    return f"{program} {number[0]}" if number else ""
