"""What the mixtures of cohere2, hunyuan, lfm2 and qwen3_5_text cannot be is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import edit_json, run_convert
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import RequestError, UnsupportedError
from upcycle.families.match import match

PER_KIND = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

FIELDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "another kind of layer, cohere2": (
        "cohere2", {"layer_types": ["chunked_attention"] * 3}, "expected sliding_attention or full_attention",
    ),
    "too few layers, cohere2": ("cohere2", {"layer_types": ["full_attention"]}, "layer_types = .*of each layer"),
    "rope by kind, cohere2": ("cohere2", {"rope_parameters": PER_KIND}, "rope settings differ between layer types"),
    "another kind of layer, lfm2": (
        "lfm2", {"layer_types": ["conv", "sliding_attention", "conv"]}, "expected full_attention or conv",
    ),
    "another kind of layer, qwen3_5": (
        "qwen3_5", {"layer_types": ["sliding_attention"] * 3}, "expected linear_attention or full_attention",
    ),
    "more than all rotated, qwen3_5": (
        "qwen3_5", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.5}},
        "partial_rotary_factor is not between 0 and 1",
    ),
    "rope of its own, hunyuan": (
        "hunyuan", {"rope_parameters": {"rope_type": "xdrope", "rope_theta": 1e4}}, "unknown rope_type",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
def test_fields(made: Callable[[str], Path], copy_of: Callable[[Path], Path], case: str) -> None:
    name, fields, reason = FIELDS[case]
    dense = copy_of(made(name))
    edit_json(dense / "config.json", **fields)
    with pytest.raises(UnsupportedError, match=reason):
        run_convert(dense, dense.parent / "out")


@pytest.mark.parametrize(
    ("name", "layers", "expected"),
    [
        ("lfm2", "first:1", "expected the last ones, as last:8"),
        ("hunyuan", "last:1", "hunyuan_v1_moe cannot mix dense and sparse layers like this; .* expected all"),
        ("qwen3_5", "last:1", "qwen3_5_moe_text cannot mix dense and sparse layers like this; .* expected all"),
    ],
)
def test_layers(made: Callable[[str], Path], tmp_path: Path, name: str, layers: str, expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        run_convert(made(name), tmp_path / "out", layers=layers)


def test_heads_of_a_qwen3_5_that_guess_further_tokens_are_left_out(
    made: Callable[[str], Path], copy_of: Callable[[Path], Path]
) -> None:
    """As Qwen3_5ForCausalLM leaves them out."""
    dense = copy_of(made("qwen3_5"))
    tensors = load_file(dense / "model.safetensors")
    tensors["mtp.norm.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, dense / "model.safetensors")
    edit_json(dense / "config.json", mtp_num_hidden_layers=1)
    assert "mtp_num_hidden_layers" not in match(open_checkpoint(dense)).config
