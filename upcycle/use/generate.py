"""Letting a model write, through plain transformers, or of an adapter through peft: what a user would do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, TextStreamer
from transformers.utils.logging import disable_progress_bar

from upcycle.adapters.load import attached
from upcycle.checkpoint.adapter import ADAPTER_CONFIG
from upcycle.checkpoint.reader import CONFIG_FILE, TOKENIZER_FILES, present_files
from upcycle.errors import InputError
from upcycle.moe.auto import auto_class
from upcycle.moe.device import find_device
from upcycle.moe.widths import run_any_width
from upcycle.requests import Generate

DTYPES: dict[str, Any] = {"auto": "auto", "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class _Pieces(TextStreamer):  # type: ignore[misc]
    """Hands finished text on as it comes, and keeps it."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None], *, skip_prompt: bool) -> None:
        super().__init__(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
        self.show = show
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002 - TextStreamer's signature
        self.text += text
        self.show(text)


def generate(directory: Path, request: Generate, show: Callable[[str], None], base: Path | None = None) -> str:
    """Return what the model in `directory` writes; `show` gets it piece by piece.

    Where that is an adapter, `base` is the model that it belongs to. A prompt that is continued is part of the text;
    of a chat, only the answer is.

    Raises InputError when the directory is no model that transformers can load, or the device is not there.
    """
    device = find_device(request.device)
    disable_progress_bar()
    finished = any((directory / name).is_file() for name in (CONFIG_FILE, ADAPTER_CONFIG))
    if (directory / "training.json").is_file() and not finished:
        raise InputError(
            "is an unfinished training", where=directory,
            hint="finish it with `upcycle train --resume`, or take one of its checkpoints",
        )  # fmt: skip
    words = directory if base is None or present_files(directory, TOKENIZER_FILES) else base
    if words.is_dir() and not present_files(words, TOKENIZER_FILES):
        raise InputError(
            "holds no tokenizer", where=words, hint="`upcycle convert --tokenizer DIR` takes one from elsewhere"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(words, trust_remote_code=False)
        model = auto_class(AutoConfig.from_pretrained(base or directory, trust_remote_code=False)).from_pretrained(
            base or directory, dtype=DTYPES[request.dtype], trust_remote_code=False, use_safetensors=True
        )
        run_any_width(model)
        model.to(device)
    except (OSError, ValueError) as error:
        raise InputError(f"transformers cannot load this model ({error})", where=base or directory) from error
    model = model.eval() if base is None else attached(model, directory)
    chat = tokenizer.chat_template is not None if request.chat is None else request.chat
    inputs = _encode(tokenizer, request, chat).to(device)
    if not inputs["input_ids"].numel():
        raise InputError("the prompt is empty", hint="give it at least one token to go on from")
    streamer = _Pieces(tokenizer, show, skip_prompt=chat)  # what is continued belongs to the text, a question does not
    torch.manual_seed(request.seed)
    unset = dict.fromkeys(("temperature", "top_p", "top_k"))  # a model's own settings warn when nothing is sampled
    sampling: dict[str, Any] = {"temperature": request.temperature} if request.temperature else unset
    model.generate(
        **inputs,
        max_new_tokens=request.max_new_tokens,
        do_sample=request.temperature > 0,
        streamer=streamer,
        pad_token_id=_first(model.generation_config.pad_token_id, model.generation_config.eos_token_id),
        **sampling,
    )
    return streamer.text


def _encode(tokenizer: Any, request: Generate, chat: bool) -> Any:
    if not chat:
        return tokenizer(request.prompt, return_tensors="pt", return_token_type_ids=False)
    if tokenizer.chat_template is None:
        raise InputError(
            "the tokenizer has no chat template", where=request.model, hint="--no-chat continues the prompt"
        )
    messages = [{"role": "user", "content": request.prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def _first(*ids: int | list[int] | None) -> int | None:
    for value in ids:
        if value is not None:
            return value[0] if isinstance(value, list) else value
    return None
