"""Data types of weights: what options, safetensors and config.json call them."""

from collections.abc import Iterable

from upcycle.checkpoint.header import DTYPE_BITS, TensorSpec
from upcycle.plan.plan import Write

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
"""Option -> safetensors dtype."""

DTYPE_WORDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors dtype -> the word in config.json."""


def narrowest_dtype(dtypes: Iterable[str], word: object) -> str:
    """Return the dtype of fewest bits in which tensors of `dtypes` may be run.

    Readers load them in the one that config.json names: `word`, which may be none of DTYPE_WORDS.
    """
    named = {dtype for dtype, known in DTYPE_WORDS.items() if known == word}
    return min(sorted({*dtypes, *named}), key=lambda dtype: DTYPE_BITS[dtype])


def main_dtype(tensors: Iterable[TensorSpec | Write]) -> str:
    """Return the data type of most of the bytes."""
    totals: dict[str, int] = {}
    for tensor in tensors:
        totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.nbytes
    return max(totals, key=lambda dtype: totals[dtype])
