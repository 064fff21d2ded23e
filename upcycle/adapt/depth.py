"""Writes the first layers of an adapter or of a planned merge: as many as fit into memory are run to prove it."""

import json
from pathlib import Path

from upcycle.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter
from upcycle.checkpoint.header import build_header
from upcycle.checkpoint.reader import CONFIG_FILE, SINGLE_FILE
from upcycle.moe.memory import layer_of
from upcycle.plan.compute import encoded_blocks
from upcycle.plan.plan import Plan

CHUNK = 4 * 2**20
"""Bytes copied at a time."""


def cut_adapter(adapter: Adapter, layers: int, directory: Path) -> None:
    """Write the adapter of the first `layers` layers to `directory`."""
    config = {**adapter.config, "num_experts": adapter.config["num_experts"][:layers]}
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    kept = [spec for name, spec in adapter.tensors.items() if (layer_of(name) or 0) < layers]
    with (directory / ADAPTER_WEIGHTS).open("wb") as out:
        out.write(build_header([(spec.name, spec.dtype, spec.shape) for spec in kept]))
        for spec in kept:
            with spec.path.open("rb") as file:
                file.seek(spec.offset)
                for start in range(0, spec.nbytes, CHUNK):
                    out.write(file.read(min(CHUNK, spec.nbytes - start)))


def write_layers(plan: Plan, layers: int, directory: Path) -> None:
    """Write the first `layers` layers of a plan as one file, beside the plan's whole config."""
    writes = [write for write in plan.writes if (layer_of(write.name) or 0) < layers]
    with (directory / SINGLE_FILE).open("wb") as file:
        file.write(build_header([(write.name, write.dtype, write.shape) for write in writes]))
        for write in writes:
            for data in encoded_blocks(write):
                file.write(data)
    (directory / CONFIG_FILE).write_text(json.dumps(dict(plan.config)), encoding="utf-8")
