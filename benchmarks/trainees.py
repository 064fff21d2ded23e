"""What is trained to be measured: random llamas of several sizes, a text, and its tokens in blocks.

python -m benchmarks.trainees DIRECTORY DEVICE makes the one that fits the device, unless it is there, and prints as
JSON where it is and what the device is called. A process of its own: the caller stays small (see `measure.run`).
"""

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import upcycle

DATA = Path(upcycle.__file__).parent / "data"
EXPERTS, TOP_K = 8, 2
MOST_STEPS = 64
"""For which there are tokens; the text is longer, so that it has no second epoch and no document ends in a block."""

DENSE, WIDE, TEXT, BLOCKS = "dense", "wide", "text.txt", "blocks.npy"
"""Files of a trainee: what is converted, the dense model of equal active size, the words, and their tokens."""


@dataclass(frozen=True, slots=True)
class Size:
    """A llama that is converted, and the batch of a step."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    batch_size: int
    seq_len: int
    dtype: str  # of the weights while they are trained: f32 or bf16

    def config(self, widening: int) -> dict[str, Any]:
        """Return the fields of a LlamaConfig with an FFN of `widening` times the width."""
        return {
            "num_hidden_layers": self.layers, "hidden_size": self.hidden,
            "intermediate_size": widening * self.intermediate, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab, "max_position_embeddings": self.seq_len,
            "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
        }  # fmt: skip


CPU = Size("cpu", 6, 384, 1024, 6, 3, 8192, 4, 512, "f32")
GPU = Size("gpu", 12, 1024, 2816, 16, 4, 32000, 8, 1024, "bf16")
BIG_GPU = Size("big-gpu", 12, 2048, 2816, 16, 4, 32000, 16, 1024, "bf16")
"""As mixtures of 8: 66 million parameters; 0.93 thousand million, about 20 GB in training; twice that, about 45 GB."""

BIG_BYTES = 60 * 2**30
"""Of a GPU that gets the bigger one."""


def main(directory: Path, device: str) -> None:
    """Make what fits `device`."""
    size, name = _choose(device)
    made = directory / f"train-{size.name}"
    if not made.exists():
        partial = made.with_name(made.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_models(partial, size)
        _write_text(partial, size)
        partial.rename(made)
    print(json.dumps({"directory": str(made), "device": name, "size": asdict(size)}))


def _choose(device: str) -> tuple[Size, str]:
    import torch

    from upcycle.moe.device import find_device

    found = find_device(device)
    if found.type != "cuda":
        return CPU, f"{found.type}, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(found)
    return BIG_GPU if properties.total_memory >= BIG_BYTES else GPU, f"{found.type}, {properties.name}"


def _write_models(directory: Path, size: Size) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, widening in ((DENSE, 1), (WIDE, TOP_K)):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**size.config(widening)))
        model.to(torch.float32 if size.dtype == "f32" else torch.bfloat16).save_pretrained(directory / name)
        for path in (DATA / "tiny").glob("tokenizer*"):
            shutil.copy(path, directory / name)


def _write_text(directory: Path, size: Size) -> None:
    """Write words drawn from a text, and the blocks that `upcycle train --shuffle 0` makes of them."""
    import numpy as np
    from transformers import AutoTokenizer

    from upcycle.text.encode import Encoder
    from upcycle.text.stream import BlockStream

    count = MOST_STEPS * size.batch_size
    words = (DATA / "sample.txt").read_text(encoding="utf-8").split()
    drawn = np.random.Generator(np.random.PCG64(0)).choice(
        words, (count * size.seq_len // 8, 10)
    )  # a token at least each
    text = directory / TEXT
    text.write_text("\n".join(" ".join(line) for line in drawn), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(directory / DENSE)
    stream = BlockStream([str(text)], Encoder(tokenizer), seq_len=size.seq_len, seed=0, shuffle=0)
    blocks = [stream.next() for _ in range(count)]
    if any((block.position_T[1:] == 0).any() for block in blocks) or max(stream.epochs):
        raise SystemExit("the text is too short: a document ends in a block")
    np.save(directory / BLOCKS, np.stack([block.ids_T for block in blocks]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
