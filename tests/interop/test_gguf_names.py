"""Every tensor of a conversion has a name in llama.cpp, by the table that its converter uses."""

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from safetensors import safe_open

from tests.conftest import run_convert
from tests.models import VARIANTS

EXPERTS = 3
WHOLE = {"token_embd.weight", "output_norm.weight"}
PER_LAYER = {
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm",
    "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps",
}  # fmt: skip
"""What llama.cpp's llama architecture has of a mixture of experts; the experts of a layer are one tensor."""


def merged(name: str) -> str:
    """The name under which the converter stacks the experts of a layer before it asks the table."""
    return re.sub(r"block_sparse_moe\.experts\.\d+\.", "block_sparse_moe.experts.", name)


def mapped(names: list[str], layers: int) -> set[str | None]:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    return {table.get_name(merged(name), try_suffixes=(".weight",)) for name in names}


def expected(layers: int, *, tied: bool) -> set[str]:
    per_layer = {f"blk.{layer}.{part}.weight" for layer in range(layers) for part in PER_LAYER}
    return WHOLE | per_layer | (set() if tied else {"output.weight"})


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_all_names_map(name: str, dense: Callable[[str], Path], tmp_path: Path) -> None:
    moe = run_convert(dense(name), tmp_path / "moe", experts=EXPERTS, top_k=2)
    with safe_open(moe / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert mapped(names, 2) == expected(2, tied=name.endswith("_tied"))
    experts = [each for each in names if ".experts." in each]
    assert len(experts) == 2 * EXPERTS * 3
    assert {int(found[1]) for each in experts if (found := re.search(r"experts\.(\d+)\.", each))} == set(range(EXPERTS))


def test_names_of_other_layouts_do_not_map() -> None:
    assert mapped(["model.layers.0.mlp.experts.gate_up_proj"], 2) == {None}
    assert mapped(["model.layers.2.input_layernorm.weight"], 2) == {None}
