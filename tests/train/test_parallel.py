"""What several processes agree on, by two of them that talk over gloo."""

from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn

from upcycle.train.parallel.state import gathered

TENSORS = {"layers.0.weight": torch.arange(12.0).view(4, 3), "norm": torch.ones(3)}


def test_whole_tensors_are_gathered_as_they_are() -> None:
    found = gathered(TENSORS)
    assert all(found[name] is tensor for name, tensor in TENSORS.items())


@pytest.mark.slow  # two processes that import torch.distributed
def test_shards_are_gathered_under_the_names_of_the_whole(tmp_path: Path) -> None:
    spawn(_gather, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def _gather(rank: int, store: str, out: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        name = "layers.0.weight"
        shard = distribute_tensor(TENSORS[name], mesh, [Shard(0)])
        assert shard.to_local().shape == (2, 3)
        torch.save(gathered({**TENSORS, name: shard}), f"{out}/{rank}.pt")
    finally:
        distributed.destroy_process_group()
