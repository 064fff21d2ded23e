"""The readers: what each is given, what it must answer, and what it is known not to compute.

A reader is a row of the table at the end; the programs themselves are reached only through `read_*.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tests.interop import limits, pairs
from tests.interop.compare import Array, Check, check, log_probabilities, relative_error, tokens, top1
from tests.interop.families import pairs_of_families
from tests.interop.pairs import Pair
from tests.models import VARIANTS

EXACT = 1e-5
"""Largest relative error of logits in float32 that another summation order explains."""

LOG_PROBABILITY = 1e-3
"""Largest error of a log-probability; llama.cpp's kernels are further from torch's than torch's are from each other."""

Compare = Callable[[Pair, Mapping[str, Any], Path, str], Iterator[Check]]
"""Pair, the reader's answer about it, the directory of its arrays, and a limit or "" -> checks."""


@dataclass(frozen=True)
class Reader:
    """A program that reads what `upcycle convert` writes."""

    name: str
    script: str
    pairs: Callable[[Path], Iterator[Pair]]
    compare: Compare
    limits: Mapping[str, str]  # variant -> what the reader does not compute, whatever the checkpoint says
    environment: str = ""  # the name of another reader whose environment it shares

    def checks(self, pair: Pair, told: Mapping[str, Any], directory: Path) -> Iterator[Check]:
        """Compare what the reader told of a pair."""
        limit = self.limits.get(pair.name, "")
        if "error" in told:
            yield check(pair.name, "runs", told["error"][:120], False, limit)
        else:
            yield from self.compare(pair, told, directory, limit)


def _every_variant(root: Path, *, writing: bool = True) -> Iterator[Pair]:
    plain = [pairs.small(variant, root) for variant in VARIANTS]
    yield from plain
    yield pairs.uneven(plain[0], root)
    yield from (pairs.compact(pair, root) for pair in plain if pair.name not in _WINDOWED)
    yield pairs.smollm2(root, writing=writing)
    if writing:
        yield pairs.smollm2_compact(root)


def _with_tokenizers(root: Path) -> Iterator[Pair]:
    names = ("llama", "llama_odd_head", "llama_llama3_rope", "llama_yarn", "llama_linear_rope", "mistral", *_UNREAD)
    small = [pairs.with_tokenizer(name, root) for name in names]
    yield from small
    yield pairs.uneven(small[0], root)
    yield from (pairs.compact(pair, root) for pair in small if pair.name != "mistral_window_tokenizer")
    yield pairs.smollm2(root)
    yield pairs.smollm2_compact(root)


def _transformers(pair: Pair, told: Mapping[str, Any], directory: Path, limit: str) -> Iterator[Check]:
    unread = ", ".join(f"{kind}: {len(keys)}" for kind, keys in told["loading"].items())
    yield check(pair.name, "keys", unread or "none missing or unexpected", not unread)
    yield from _logits(pair, directory, limit)
    if not pair.greedy:
        return
    yield check(pair.name, "chat template", "the same text", told["chat"] == pair.chat)
    ids = [one["ids"] == ours.ids for one, ours in zip(told["written"], pair.greedy, strict=True)]
    yield check(pair.name, "token ids", f"{sum(ids)} of {len(ids)} prompts", all(ids))
    refused = sorted({name for one in told["written"] for name in one["refused"]})
    yield check(pair.name, "what generate refuses", ", ".join(refused) or "nothing", not refused)
    yield from _greedy(pair, told["written"])
    texts = [one["text"] == ours.text for one, ours in zip(told["written"], pair.greedy, strict=True)]
    yield check(pair.name, "greedy text", f"{sum(texts)} of {len(texts)} prompts", all(texts))


def _llamacpp(pair: Pair, told: Mapping[str, Any], directory: Path, limit: str) -> Iterator[Check]:
    likeliest_TK = np.load(directory / f"{pair.name}.likeliest.npy")
    figure, good = top1(likeliest_TK[:, 0], pair.logits)
    yield check(pair.name, "top-1", figure, good, limit)
    ours_TK = np.take_along_axis(log_probabilities(pair.logits), likeliest_TK, 1)
    error = float(np.abs(np.load(directory / f"{pair.name}.logprobs.npy") - ours_TK).max())
    what = f"log-probabilities, {likeliest_TK.shape[1]} likeliest"
    yield check(pair.name, what, f"error {error:.1e}", error <= LOG_PROBABILITY, limit)
    if pair.greedy:
        same = [one["prompt_tokens"] == len(ours.ids) for one, ours in zip(told["written"], pair.greedy, strict=True)]
        yield check(pair.name, "tokens in prompt", f"{sum(same)} of {len(same)} prompts", all(same))
        yield from _greedy(pair, told["written"])


def _mlx(pair: Pair, _told: Mapping[str, Any], directory: Path, limit: str) -> Iterator[Check]:
    yield from _logits(pair, directory, limit)


def _logits(pair: Pair, directory: Path, limit: str) -> Iterator[Check]:
    theirs_TV: Array = np.load(directory / f"{pair.name}.logits.npy")
    error = relative_error(theirs_TV, pair.logits)
    yield check(pair.name, "logits", f"relative error {error:.1e}", error <= EXACT, limit)
    figure, good = top1(theirs_TV.argmax(-1), pair.logits)
    yield check(pair.name, "top-1", figure, good, limit)


def _greedy(pair: Pair, written: list[Mapping[str, Any]]) -> Iterator[Check]:
    for number, (theirs, ours) in enumerate(zip(written, pair.greedy, strict=True), 1):
        figure, good = tokens(theirs["tokens"], ours.tokens, ours.margins)
        yield check(pair.name, f"greedy, prompt {number}", figure, good)


_NO_SCALING = "mlx-lm's mixtral has no rope scaling"
_SILU = "its experts are always SwiGLU"
_WINDOWED = ("mistral_window", "mistral_tied")
"""GraniteMoeShared has no window: such a merge is refused."""

_NO_HEAD_DIM = "its granite takes head_dim for hidden / heads"
_NO_SHARED = "mlx-lm has no granitemoeshared"
_UNREAD = {"llama_gelu": _SILU, "mistral_window": "its llama architecture has no sliding window"}

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        reader.name: reader
        for reader in (
            Reader("transformers", "read_transformers.py", _every_variant, _transformers, {}),
            Reader(
                "llamacpp",
                "read_llamacpp.py",
                _with_tokenizers,
                _llamacpp,
                {
                    **{f"{name}_tokenizer": why for name, why in _UNREAD.items()},
                    "llama_gelu_tokenizer_compact": _SILU,
                    "llama_odd_head_tokenizer_compact": _NO_HEAD_DIM,
                    "llama_llama3_rope_tokenizer_compact": "its converter has no llama3 rope scaling for granite",
                },
            ),
            Reader(
                "mlx",
                "read_mlx.py",
                partial(_every_variant, writing=False),
                _mlx,
                {
                    **{f"{name}_compact": _NO_SHARED for name in VARIANTS},
                    "llama_gelu": _SILU,
                    **dict.fromkeys(("llama_odd_head", "mistral_odd_head"), "it takes head_dim for hidden / heads"),
                    **dict.fromkeys(("llama_llama3_rope", "llama_yarn", "llama_linear_rope"), _NO_SCALING),
                    "llama_dynamic_rope": _NO_SCALING,
                    **dict.fromkeys(("mistral_window", "mistral_tied"), "mlx-lm's mixtral has no sliding window"),
                },
            ),
            Reader("llamacpp-families", "read_llamacpp.py", pairs_of_families, _llamacpp, limits.LLAMA_CPP, "llamacpp"),
            Reader("mlx-families", "read_mlx.py", pairs_of_families, _mlx, limits.MLX, "mlx"),
        )
    }
)
