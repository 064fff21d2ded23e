"""Which widths stock transformers cannot run: torch's grouped_mm wants rows of a multiple of 16 bytes.

transformers computes experts by grouped_mm unless told otherwise. It stops with "strides should be multiple of 16
bytes" when a row of an expert's matrix, as long as the hidden size (gate and up) or the FFN width (down), is another
number of bytes. Seen with transformers 5.17 and torch 2.11 in float32, float16 and bfloat16, on the CPU.
"""

from collections.abc import Mapping

from upcycle.checkpoint.header import DTYPE_BITS

ROW_BYTES = 16
"""What the bytes of a row must be a multiple of."""

EAGER = 'experts_implementation="eager"'
"""What `from_pretrained` takes to run experts of any width, one after the other."""


def row_multiple(dtype: str) -> int:
    """Return what the number of values in a row must be a multiple of; `dtype` is a key of DTYPE_BITS."""
    return ROW_BYTES * 8 // DTYPE_BITS[dtype]


def padded_width(width: int, dtype: str) -> int:
    """Return the smallest width that is no less than `width` and that grouped_mm runs."""
    return -(-width // row_multiple(dtype)) * row_multiple(dtype)


def grouped_mm_problem(rows: Mapping[str, int], dtype: str) -> str | None:
    """Return a sentence about the widths that stop stock transformers, or None when there are none.

    `rows` are widths by what they are called, such as {"hidden size": 50, "FFN width": 60}, in values; `dtype` is that
    of the experts as written, a key of DTYPE_BITS.
    """
    wrong = [f"{name} {width}" for name, width in rows.items() if width % row_multiple(dtype)]
    if not wrong:
        return None
    return (
        f"{' and '.join(wrong)} in {dtype}: no multiple of {row_multiple(dtype)}, so a row is no multiple of "
        f"{ROW_BYTES} bytes, and transformers stops unless it is loaded with {EAGER}"
    )
