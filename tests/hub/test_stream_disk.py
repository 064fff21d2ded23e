"""What a conversion straight to the Hub takes of the disk: one shard at a time, with all that the client keeps."""

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import models
from tests.hub.client import Client
from tests.hub.server import Hub

REPO = "someone/moe"
SHARD = 20_000_000
ALLOWANCE = 1_000_000
"""Bytes for config, index, receipt and card, and for what the client notes and logs."""


@dataclass
class Peak:
    """The most that was seen, in bytes."""

    sizes: int = 0
    blocks: int = 0
    looks: int = 0

    def look(self, here: Path, process: "subprocess.Popen[str]") -> None:
        found = [*facts(here), *unlinked(process.pid)]
        self.sizes = max(self.sizes, sum(fact.st_size for fact in found))
        self.blocks = max(self.blocks, sum(fact.st_blocks * 512 for fact in found))
        self.looks += 1


def facts(here: Path) -> Iterator[os.stat_result]:
    """Every file below a directory, as far as it stays there while we look."""
    for folder, _, names in os.walk(here):
        for name in names:
            try:
                yield os.lstat(os.path.join(folder, name))  # noqa: PTH118  every few milliseconds
            except FileNotFoundError:
                continue


def unlinked(pid: int) -> Iterator[os.stat_result]:
    """The files that a process holds open and that have no name any more."""
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # no /proc, or it has ended
        return
    for descriptor in descriptors:
        try:
            fact = descriptor.stat()
        except OSError:
            continue
        if stat.S_ISREG(fact.st_mode) and fact.st_nlink == 0:
            yield fact


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["0", "0.1"])
@pytest.mark.parametrize("wire", ["lfs", "xet"])
def test_one_shard_at_a_time(hub: Hub, tmp_path: Path, wire: str, noise: str) -> None:
    dense, here, peak = tmp_path / "dense", tmp_path / "here", Peak()
    models.write_random(dense, models.TEST)
    (here / "tmp").mkdir(parents=True)
    places = {"UPCYCLE_CACHE": str(here / "cache"), "TMPDIR": str(here / "tmp")}
    own = places | ({"HF_HUB_DISABLE_XET": "1"} if wire == "lfs" else {})
    client = Client(hub, here / "home").with_token().with_(**own)
    words = ["--max-shard-size", str(SHARD), "--noise", noise, "--stream-to", REPO]
    with client.start("convert", str(dense), *words) as process:
        while process.poll() is None:
            peak.look(here, process)
            time.sleep(0.003)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0, said
    head = hub.repos[REPO].find("main")
    assert head is not None
    sizes = [blob.size for name, blob in head.files.items() if name.endswith(".safetensors")]
    assert sum(sizes) > 10 * SHARD
    assert peak.sizes >= max(sizes), "the largest shard was seen"
    assert peak.sizes <= max(sizes) + ALLOWANCE
    assert peak.blocks <= max(sizes) + ALLOWANCE
