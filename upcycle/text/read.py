"""Reads the text that models are compared on, and turns it into token ids."""

from pathlib import Path

import torch
from torch import Tensor

from upcycle.checkpoint.reader import Checkpoint
from upcycle.errors import InputError

SAMPLE = Path(__file__).parent.parent / "data" / "sample.txt"
"""The text that `verify` runs models on when it is given none."""


def read_text(path: str | None) -> str:
    """Return the text of a UTF-8 file, or the built-in sample; raise InputError when it cannot be read."""
    try:
        return (SAMPLE if path is None else Path(path)).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path) from None
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", where=path, found=f"byte {error.object[error.start]:#04x}") from None


def token_ids(checkpoint: Checkpoint, text: str, limit: int) -> Tensor:
    """Return the first `limit` token ids of `text` as `(1, T)`, int64.

    Raises InputError when there is no tokenizer, or fewer than two tokens.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory, trust_remote_code=False)
        ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
    except Exception as error:  # transformers raises many kinds here, none its own
        raise InputError(f"the tokenizer cannot be used ({error})", where=checkpoint.directory) from error
    if len(ids) < 2:
        raise InputError("the text is too short", found=f"{len(ids)} tokens", expected="at least 2")
    if max(ids) >= checkpoint.config["vocab_size"]:
        raise InputError(
            "the tokenizer does not fit the model",
            where=checkpoint.directory,
            found=f"token {max(ids)}",
            expected=f"less than the vocabulary's {checkpoint.config['vocab_size']}",
        )
    return torch.tensor([ids])


def random_ids(vocabulary: int, count: int) -> Tensor:
    """Return `(1, count)` token ids drawn with a fixed seed, for models without a tokenizer."""
    return torch.randint(vocabulary, (1, count), generator=torch.Generator().manual_seed(0))
