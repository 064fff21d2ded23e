"""On a file system with reflinks the experts of a conversion share their blocks with the dense model."""

import filecmp
import shutil
from pathlib import Path

import pytest

from benchmarks import models, xfs
from upcycle.pipeline.stages import convert
from upcycle.requests import Convert

IMAGE_BYTES = 400 * 2**20
EXPERTS = 4


@pytest.mark.slow
def test_experts_share_the_blocks_of_the_dense_model(tmp_path: Path) -> None:
    reason = xfs.obstacle()
    if reason:
        pytest.skip(reason)
    dense, plain = tmp_path / "dense", tmp_path / "plain"
    models.write_random(dense, models.TEST)
    _convert(dense, plain)
    with xfs.mounted(tmp_path, IMAGE_BYTES) as mount:
        shutil.copytree(dense, mount / "dense")
        before = xfs.disk_used(mount)
        _convert(mount / "dense", mount / "moe")
        shared, total = xfs.shared_expert_bytes(mount / "moe")
        assert total == EXPERTS * models.TEST.layers * 3 * 1024 * 3072 * 2  # three bf16 matrices a layer
        assert shared >= 0.95 * total
        assert xfs.disk_used(mount) - before < 0.05 * total
        assert _same_files(plain, mount / "moe")


def _convert(dense: Path, out: Path) -> None:
    convert(Convert(model=str(dense), out=str(out), experts=EXPERTS))


def _same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names
