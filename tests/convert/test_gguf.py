"""GGUF files: what transformers would lose or make up is refused; what it reads is read once, and anew when changed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.conftest import contents
from upcycle.errors import InputError, UnsupportedError
from upcycle.pipeline.locate import locate
from upcycle.pipeline.stages import plan
from upcycle.requests import Plan

D, F, V, HEADS, LAYERS = 64, 96, 300, 4, 2
FIELDS: dict[str, Any] = {
    "block_count": LAYERS, "context_length": 64, "embedding_length": D, "feed_forward_length": F, "vocab_size": V,
    "attention.head_count": HEADS, "attention.head_count_kv": 2, "rope.dimension_count": D // HEADS,
}  # fmt: skip
SHAPES = {
    "attn_norm": (D,), "attn_q": (D, D), "attn_k": (D // 2, D), "attn_v": (D // 2, D), "attn_output": (D, D),
    "ffn_norm": (D,), "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F),
}  # fmt: skip


def tensors() -> dict[str, tuple[int, ...]]:
    blocks = {f"blk.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in SHAPES.items()}
    return {"token_embd.weight": (V, D), **blocks, "output_norm.weight": (D,)}


def write(
    path: Path, *, without: str = "", quantised: str | None = None, more: dict[str, Any] | None = None, seed: int = 0,
    **fields: Any,
) -> Path:  # fmt: skip
    """Write a small llama with a byte-level tokenizer; `more` are further tensors, `fields` replace or add some.

    Tensors with `quantised` in their name are written as Q8_0.
    """
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {**FIELDS, **{name.replace("__", "."): value for name, value in fields.items()}}.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"llama.{name}", value)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    words = ["<s>", "</s>", *(chr(number) for number in range(256, 256 + V - 4))]
    words += [words[2] + words[3], words[4] + words[5]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, *[1] * (V - 2)])
    writer.add_token_merges([f"{words[2]} {words[3]}", f"{words[4]} {words[5]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    random = np.random.default_rng(seed)
    for name, shape in {**tensors(), **(more or {})}.items():
        values = random.normal(size=shape).astype(np.float32)
        if quantised and quantised in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        elif name != without:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UPCYCLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_plain_llama_is_read(tmp_path: Path) -> None:
    from upcycle.checkpoint.reader import open_checkpoint

    directory = locate(str(write(tmp_path / "plain.gguf")))
    assert directory.name == "plain"
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config["num_hidden_layers"] == LAYERS
    assert len(checkpoint.tensors) == len(tensors())


LOST: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a missing tensor": (
        lambda path: write(path, without="blk.1.ffn_up.weight"), "tensor 'blk.1.ffn_up.weight' is missing"
    ),
    "a bias": (lambda path: write(path, more={"blk.0.attn_q.bias": (D,)}), "tensor 'blk.0.attn_q.bias' has no place"),
    "rope factors": (
        lambda path: write(path, more={"rope_freqs.weight": (8,)}), "tensor 'rope_freqs.weight' has no place"
    ),
    "a layer too many": (lambda path: write(path, block_count=3), "tensor 'blk.2.attn_k.weight' is missing"),
    "a layer too few": (lambda path: write(path, block_count=1), "tensor 'blk.1.attn_k.weight' has no place"),
    "experts": (lambda path: write(path, expert_count=4), "expert_count = 4"),
    "rope scaling": (lambda path: write(path, rope__scaling__type="linear"), "rope.scaling.type = 'linear'"),
    "partial rotation": (lambda path: write(path, rope__dimension_count=8), "rope.dimension_count = 8"),
    "a window": (lambda path: write(path, attention__sliding_window=7), "attention.sliding_window = 7"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_would_be_lost_is_refused(tmp_path: Path, cache: Path, name: str) -> None:
    make, problem = LOST[name]
    path = make(tmp_path / "model.gguf")
    with pytest.raises(UnsupportedError) as caught:
        locate(str(path))
    assert caught.value.what.startswith("holds what would be lost: ")
    assert problem in caught.value.what
    assert contents(cache) == {}


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf")
    before = locate(str(path))
    assert locate(str(path)) == before
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a program may that restores it
    after = locate(str(path))
    assert after != before
    assert contents(after)["model.safetensors"] != contents(before)["model.safetensors"]


def test_code_beside_the_file_is_not_run(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf")
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}')
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Evil"}, "model_type": "strange"}')
    assert locate(str(path)).is_dir()
    assert not ran.exists()


@pytest.mark.parametrize("data", [b"", b"GGU", b"GGML" + bytes(100), b"GGUF" + b"\xff" * 100])
def test_what_is_no_gguf_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(InputError):
        locate(str(path))


def test_quantised_tensors_are_told(tmp_path: Path) -> None:
    """One matrix in each of two layers."""
    quantised = write(tmp_path / "quantised.gguf", quantised="ffn_up")
    told = plan(Plan(model=str(quantised), experts=4)).warnings
    assert told[0].startswith("the GGUF file has 2 quantised tensors (Q8_0): they are read as bfloat16")
    assert "GGUF" not in plan(Plan(model=str(write(tmp_path / "whole.gguf")), experts=4)).warnings[0]
