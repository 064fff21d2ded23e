"""Data types of weights: what options, safetensors and config.json call them."""

from collections.abc import Iterable

from upcycle.checkpoint.header import TensorSpec
from upcycle.plan.plan import Write

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
"""Option -> safetensors dtype."""

DTYPE_WORDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors dtype -> the word in config.json."""


def main_dtype(tensors: Iterable[TensorSpec | Write]) -> str:
    """Return the data type of most of the bytes."""
    totals: dict[str, int] = {}
    for tensor in tensors:
        totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.nbytes
    return max(totals, key=lambda dtype: totals[dtype])
