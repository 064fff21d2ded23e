"""A GGUF file as a source: dequantised once into a cache, as an ordinary checkpoint in bfloat16."""

import hashlib
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

from upcycle.errors import InputError

FORMAT = 2
"""Of what is made of a file; another one is made anew."""

_SAMPLE = 2**20  # bytes at either end that identify a file together with its size


def dequantised(path: Path) -> Path:
    """Return a directory with the checkpoint that the GGUF file `path` holds, made on the first call.

    Raises InputError when the file is not GGUF, or of an architecture that transformers cannot read.
    """
    if not path.is_file():
        raise InputError("no such file", where=path)
    directory = cache_directory() / "gguf" / f"{path.stem}-{_identity(path)}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="unfinished-", dir=directory.parent))
        try:
            with redirect_stderr(StringIO()):  # progress bars that cannot be switched off
                _dequantise(path, scratch)
            for made in (scratch, *scratch.iterdir()):  # private until now, as mkdtemp and safetensors make them
                made.chmod(0o755 if made.is_dir() else 0o644)
            scratch.replace(directory)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return directory


def cache_directory() -> Path:
    """Return where upcycle keeps what can be made again: UPCYCLE_CACHE, or `upcycle` in the user's cache directory."""
    own = os.environ.get("UPCYCLE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upcycle"


def _identity(path: Path) -> str:
    """Return twelve hexadecimal digits that tell files apart without reading them whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_SAMPLE)
        if not start.startswith(b"GGUF"):
            raise InputError("is not a GGUF file", where=path, found=repr(start[:4]), expected="b'GGUF'")
        file.seek(max(0, size - _SAMPLE))
        end = file.read()
    return hashlib.sha256(b"%d:%d:" % (FORMAT, size) + start + end).hexdigest()[:12]


def _dequantise(path: Path, directory: Path) -> None:
    try:
        import gguf as _  # noqa: F401 - transformers reads GGUF through it
    except ImportError:
        raise InputError("reading GGUF needs the gguf package", where=path, hint="pip install gguf") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    where = str(path.resolve().parent)
    try:
        model = AutoModelForCausalLM.from_pretrained(where, **_options(path.name), dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=path.name)
    except Exception as error:  # transformers raises many kinds here, none its own
        raise InputError(f"transformers cannot read this GGUF file ({error})", where=path) from error
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


def _options(name: str) -> dict[str, object]:
    """The arguments that make transformers dequantise and forget that it did; older releases do so by themselves."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {"gguf_file": name}
    return {"gguf_file": name, "quantization_config": GgufConfig(gguf_file=name, dequantize=True)}


def _name_tokenizer_class(path: Path) -> None:
    import json

    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
