"""How many layers fit into memory, and an adapter cut to them."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.drawn_adapters import draw_adapter
from upcycle.adapt.depth import cut_adapter
from upcycle.checkpoint.adapter import open_adapter
from upcycle.moe.memory import (
    FLOAT_BYTES,
    MARGIN,
    PROCESS_BYTES,
    available_memory,
    layer_of,
    layers_that_fit,
    memory_needed,
)

SIZES = {
    "model.embed_tokens.weight": 1000, "model.layers.0.mlp.weight": 10, "model.layers.0.self_attn.weight": 5,
    "model.layers.1.mlp.weight": 30, "model.layers.10.mlp.weight": 7, "lm_head.weight": 1000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.mlp.gate.weight", 12), ("base_model.model.model.layers.3.mlp.upcycle_router.weight", 3),
        ("layers.1.x", 1), ("lm_head.weight", None), ("model.players.1.x", None),
    ],
)  # fmt: skip
def test_layers_of_tensors(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_memory_needed_counts_what_is_loaded_and_the_largest_layer_twice() -> None:
    for layers, count in ((0, 2000), (1, 2000 + 15 + 15), (2, 2000 + 45 + 30), (11, 2000 + 52 + 30)):
        assert memory_needed(SIZES.items(), layers, 7) == PROCESS_BYTES + 7 + round(MARGIN * FLOAT_BYTES * count)
        assert memory_needed(SIZES.items(), layers, 7, 2) == PROCESS_BYTES + 7 + round(MARGIN * 2 * count)


def test_the_larger_model_decides() -> None:
    small = {name: count // 5 for name, count in SIZES.items()}
    for layers in (0, 1, 2, 11):
        exactly = memory_needed(SIZES.items(), layers)
        assert layers_that_fit((small, SIZES), layers, 0, exactly) == layers
        assert layers_that_fit((SIZES, small), 11, 0, exactly) >= layers
        assert layers_that_fit((SIZES, small), 11, 0, exactly - 1) < max(layers, 1)
    assert layers_that_fit((small, SIZES), 11, 0, 0) == 0


def test_the_system_is_asked(tmp_path: Path) -> None:
    meminfo, limits = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:       24684092 kB\nMemAvailable:   16000000 kB\n")
    assert available_memory(meminfo, limits) == 16_000_000 * 1024
    limits.mkdir()
    (limits / "memory.current").write_text("3000\n")
    (limits / "memory.stat").write_text("anon 100\ninactive_file 500\nactive_file 20\n")
    (limits / "memory.max").write_text("max\n")
    assert available_memory(meminfo, limits) == 16_000_000 * 1024
    (limits / "memory.max").write_text("10000\n")
    assert available_memory(meminfo, limits) == 10000 - 3000 + 520
    assert available_memory(tmp_path / "none", limits) > 2**28  # another system
    assert available_memory() > 2**20


@pytest.mark.parametrize("fields", [{}, {"shared_a": True, "attention_rank": 3}])
def test_a_cut_adapter_has_the_very_tensors(tiny: Path, fields: dict[str, int], tmp_path: Path) -> None:
    whole = open_adapter(draw_adapter(tiny, tmp_path / "whole", "lora", **fields))
    (tmp_path / "cut").mkdir()
    cut_adapter(whole, 1, tmp_path / "cut")
    cut = open_adapter(tmp_path / "cut")
    assert cut.config == {**whole.config, "num_experts": [4]}
    found, expected = (load_file(each.directory / "adapter_model.safetensors") for each in (cut, whole))
    assert set(found) == {name for name in expected if ".layers.0." in name}
    assert all((found[name] == expected[name]).all() for name in found)
