"""A GGUF file as a source: dequantised once into a cache, as an ordinary checkpoint in bfloat16.

transformers reads such files leniently: what is missing it draws at random, what it does not know it leaves out. So
everything in the file is accounted for here first.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from upcycle.checkpoint.place import DEQUANTISED_FILE
from upcycle.errors import InputError, UnsupportedError
from upcycle.foreign.cache import cached
from upcycle.message import listed, quoted

ARCHITECTURE = "llama"

TENSORS = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
"""Of every block; `blk.N.NAME.weight`."""

USED = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "rope.freq_base", "tensor_data_layout",
)  # fmt: skip
"""Fields of the architecture that transformers makes the config of, or that say nothing about the model."""

EMPTY: Mapping[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",), "expert_count": (0,), "expert_used_count": (0,), "rope.scaling.finetuned": (False,),
}  # fmt: skip
"""Fields that transformers ignores, with the values under which that is right."""

HEAD_DIM = ("rope.dimension_count", "attention.key_length", "attention.value_length")
"""Fields that must be the head's own dimension: transformers takes hidden size / heads, and rotates all of it."""


WHOLE = ("F32", "F16", "BF16")
"""Types of tensors that are not quantised."""


def dequantised(path: Path) -> Path:
    """Return a directory with the checkpoint that the GGUF file `path` holds, made on the first call.

    Raises InputError when the file is not GGUF, UnsupportedError for anything in it that would be lost.
    """
    if not path.is_file():
        raise InputError("no such file", where=path)
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        raise InputError("is not a GGUF file", where=path, found=repr(start), expected="b'GGUF'")
    real = path.resolve()

    def make(scratch: Path) -> None:
        with redirect_stderr(StringIO()):  # progress bars that cannot be switched off
            _dequantise(real, scratch)

    return cached("gguf", real, [real], Path(path.stem), make)


def _dequantise(path: Path, directory: Path) -> None:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError("reading GGUF needs the gguf package", where=path, hint="pip install gguf") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if "tokenizer." not in name}
        problems = list(_problems(fields, {tensor.name for tensor in reader.tensors}))
        kinds = Counter(tensor.tensor_type.name for tensor in reader.tensors)
        del reader
        if not problems:
            with _alone(path) as where:
                options = {**_options(path.name), "dtype": torch.bfloat16, "output_loading_info": True}
                model, loaded = AutoModelForCausalLM.from_pretrained(where, trust_remote_code=False, **options)
                tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, gguf_file=path.name)
            problems = [f"{key} was not read" for kind in ("missing_keys", "mismatched_keys") for key in loaded[kind]]
    except Exception as error:  # gguf and transformers raise many kinds here, none their own
        raise InputError(f"this GGUF file cannot be read ({_first_line(error)})", where=path) from error
    if problems:
        raise UnsupportedError("holds what would be lost: " + listed(problems, between="; ", cut=300), where=path)
    model.config._name_or_path = ""
    model.save_pretrained(directory)
    # The class name that transformers 4 and 5 both know; its own would be one that 4 refuses.
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token,
        chat_template=tokenizer.chat_template,
        model_max_length=model.config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],  # else transformers 4 adds some that its `generate` refuses
    )
    plain.save_pretrained(directory)
    _name_tokenizer_class(directory / "tokenizer_config.json")
    rounded = {kind: count for kind, count in kinds.items() if kind not in WHOLE}
    if rounded:
        (directory / DEQUANTISED_FILE).write_text(json.dumps(rounded, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _alone(path: Path) -> Iterator[str]:
    """A directory with nothing but the file: what lies beside it, code for instance, is not of the model."""
    with tempfile.TemporaryDirectory(prefix="upcycle-gguf-") as scratch:
        link = Path(scratch) / path.name
        try:
            link.symlink_to(path)
        except OSError:  # Windows, without the right to
            shutil.copyfile(path, link)
        yield scratch


def _problems(fields: Mapping[str, Any], tensors: set[str]) -> Iterator[str]:
    """Yield what transformers would not read of a file with these fields and tensors, or would make up."""
    architecture = fields.get("general.architecture")
    if architecture != ARCHITECTURE:
        yield f"architecture {quoted(architecture, 40)}, where {ARCHITECTURE} is expected"
        return
    prefix = f"{ARCHITECTURE}."
    own = {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}
    head_dim = own["embedding_length"] // own["attention.head_count"]
    for name, value in own.items():
        good = name in USED or value in EMPTY.get(name, ()) or (name in HEAD_DIM and value == head_dim)
        if not good:
            yield f"{ascii(name)[1:-1]} = {quoted(value, 40)}"
    expected = {"token_embd.weight", "output_norm.weight", "output.weight"} | {
        f"blk.{layer}.{name}.weight" for layer in range(own["block_count"]) for name in TENSORS
    }
    yield from (f"tensor {quoted(name, 80)} has no place" for name in sorted(tensors - expected))
    # without `output` the head is the embeddings
    yield from (f"tensor {name!r} is missing" for name in sorted(expected - tensors - {"output.weight"}))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return ascii(lines[0])[1:-1][:200] if lines else type(error).__name__


def _options(name: str) -> dict[str, Any]:
    """The arguments that make transformers dequantise and forget that it did; older releases do so by themselves."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {"gguf_file": name}
    return {"gguf_file": name, "quantization_config": GgufConfig(gguf_file=name, dequantize=True)}


def _name_tokenizer_class(path: Path) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
