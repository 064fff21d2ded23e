"""Mistral checkpoints of any size without a trained model: random weights, or headers over holes. No torch.

python -m benchmarks.models DIRECTORY NAME writes one with random weights: `bench` is converted, `push` is published.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from upcycle.checkpoint.header import build_header, tensor_bytes
from upcycle.checkpoint.reader import CONFIG_FILE, INDEX_FILE
from upcycle.checkpoint.writer import write_all

CHUNK = 4 * 2**20
"""Bytes of random weights made at a time."""

Entry = tuple[str, str, tuple[int, ...]]  # name, safetensors dtype, shape


class Model(Protocol):
    """A model by its sizes."""

    def config(self) -> dict[str, Any]:
        """Return config.json."""

    def tensors(self) -> Iterable[Entry]:
        """Return every tensor in the order of the model's modules."""


@dataclass(frozen=True, slots=True)
class Mistral:
    """The sizes of a Mistral."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int = 32000
    head_dim: int = 128

    def config(self) -> dict[str, Any]:
        """Return config.json as Mistral-7B-v0.1 has it, with these sizes."""
        return {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "torch_dtype": "bfloat16",
            "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02,
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": 32768, "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "use_cache": True,
        }  # fmt: skip

    def tensors(self) -> Iterator[Entry]:
        """Yield every tensor in the order of the model's modules."""
        D, F, V = self.hidden, self.intermediate, self.vocab
        Q, K = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", "BF16", (V, D)
        for layer in range(self.layers):
            shapes: dict[str, tuple[int, ...]] = {
                "self_attn.q_proj": (Q, D), "self_attn.k_proj": (K, D), "self_attn.v_proj": (K, D),
                "self_attn.o_proj": (D, Q), "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F),
                "input_layernorm": (D,), "post_attention_layernorm": (D,),
            }  # fmt: skip
            for name, shape in shapes.items():
                yield f"model.layers.{layer}.{name}.weight", "BF16", shape
        yield "model.norm.weight", "BF16", (D,)
        yield "lm_head.weight", "BF16", (V, D)


BENCH = Mistral(layers=12, hidden=2048, intermediate=7168, heads=16, kv_heads=4)
"""1.57 GB: large enough that start-up time does not count, small enough to repeat."""
PUSH = Mistral(layers=16, hidden=2048, intermediate=7168, heads=16, kv_heads=4)
"""2.01 GB, in six files."""
MISTRAL_7B = Mistral(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8)
"""Mistral-7B-v0.1, 14.5 GB."""
TEST = Mistral(layers=2, hidden=1024, intermediate=3072, heads=8, kv_heads=2, vocab=1000)
"""46 MB, with 6.3 MB for each tensor of the FFN."""

RANDOM = {"bench": BENCH, "push": PUSH}
SHARD_BYTES: dict[Model, int] = {BENCH: 400_000_000, PUSH: 400_000_000, MISTRAL_7B: 5_000_000_000, TEST: 30_000_000}
"""Largest file of a source: four, six, three and two of them. Of other models it is 400 MB."""


def make_bench(directory: Path) -> Path:
    """Write `BENCH` unless it is there."""
    return make_random(directory, "bench")


def make_random(directory: Path, name: str) -> Path:
    """Write a model of `RANDOM` unless it is there, in a process of its own: the caller stays small (`measure.run`)."""
    if not directory.exists():
        partial = directory.with_name(directory.name + ".partial")
        subprocess.run([sys.executable, "-m", "benchmarks.models", str(partial), name], check=True)
        partial.rename(directory)
    return directory


def write_random(directory: Path, model: Model) -> None:
    """Write `model` with random finite bfloat16 weights of magnitude 2^-7 to 2^-5; needs a few MB of memory."""
    import numpy as np

    generator = np.random.Generator(np.random.SFC64(0))
    for file, size in _shards(directory, model):
        for start in range(0, size, CHUNK):
            bits = generator.integers(0, 2**16, -(-min(CHUNK, size - start) // 2), dtype=np.uint16)
            # sign, lowest bit of the exponent and mantissa are random; the rest of the exponent is fixed
            write_all(file, ((bits & 0x80FF) | 0x3C00).tobytes())


def write_sparse(directory: Path, model: Model) -> None:
    """Write `model` with real headers and a hole for the weights, which takes no disk and reads as zeros."""
    for file, size in _shards(directory, model):
        file.truncate(file.tell() + size)


def _shards(directory: Path, model: Model) -> Iterator[tuple[BinaryIO, int]]:
    """Write config, index and headers; yield each file, ready for its data, and the bytes of that."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_text(json.dumps(model.config(), indent=2), encoding="utf-8")
    groups = _groups(model)
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    weight_map = {entry[0]: name for name, group in zip(names, groups, strict=True) for entry in group}
    index = {"metadata": {"total_size": sum(map(_size, groups))}, "weight_map": weight_map}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")
    for name, group in zip(names, groups, strict=True):
        with (directory / name).open("wb", buffering=0) as file:
            write_all(file, build_header(group))
            yield file, _size(group)


def _groups(model: Model) -> list[list[Entry]]:
    """Fill files in the order of the modules; inside a file tensors are sorted by name, as safetensors does it."""
    groups: list[list[Entry]] = [[]]
    for entry in model.tensors():
        if _size([*groups[-1], entry]) > SHARD_BYTES.get(model, 400_000_000):
            groups.append([])
        groups[-1].append(entry)
    return [sorted(group) for group in groups]


def _size(group: list[Entry]) -> int:
    return sum(tensor_bytes(dtype, shape) for _, dtype, shape in group)


if __name__ == "__main__":
    write_random(Path(sys.argv[1]), RANDOM[sys.argv[2]])
