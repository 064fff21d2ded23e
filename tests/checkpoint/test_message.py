"""What messages quote, hashes and numbers: the small functions that all rooms share."""

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest

from upcycle.checkpoint.digest import seed_from, sha256_of
from upcycle.checkpoint.strict_json import is_finite_number, without_nan
from upcycle.message import listed, quoted


@pytest.mark.parametrize(
    ("items", "options", "expected"),
    [
        ([], {}, ""),
        (["a"], {}, "a"),
        ([1, 2, 3, 4], {}, "1, 2, 3, 4"),
        (range(1, 7), {}, "1, 2, 3, 4 and 2 more"),
        (["a", "b", "c"], {"most": 1, "between": "; "}, "a; and 2 more"),
        ((name for name in ("x" * 9, "y")), {"cut": 3}, "xxx, y"),
    ],
)
def test_a_list_is_cut_to_its_first_items(items: Any, options: dict[str, Any], expected: str) -> None:
    assert listed(items, **options) == expected


def test_a_value_is_quoted_in_printable_ascii() -> None:
    assert quoted("\x1b[2J\nä") == r"'\x1b[2J\n\xe4'"
    assert quoted([4] * 9000) == ("[" + "4, " * 20)[:60]
    assert quoted("x" * 99, 5) == "'xxxx"


def test_bytes_and_files_have_the_same_hash(tmp_path: Path) -> None:
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(b"abc") == sha256_of(bytearray(b"abc")) == sha256_of(tmp_path / "file") == expected


def test_a_seed_is_the_first_eight_bytes_of_the_hash_without_the_last_bit() -> None:
    first = hashlib.sha256(b"0:name").digest()[:8]
    assert seed_from("0:name") == int.from_bytes(first, "little") // 2 < 2**63


def test_nan_and_infinity_are_null_in_json() -> None:
    assert without_nan({"a": (1.5, math.nan, [math.inf]), "b": "NaN", "c": None}) == {
        "a": [1.5, None, [None]], "b": "NaN", "c": None,
    }  # fmt: skip


@pytest.mark.parametrize("value", [0, -3, 1.5])
def test_finite_numbers(value: object) -> None:
    assert is_finite_number(value)


@pytest.mark.parametrize("value", [True, math.nan, -math.inf, "1", None, [1]])
def test_what_is_no_finite_number(value: object) -> None:
    assert not is_finite_number(value)
