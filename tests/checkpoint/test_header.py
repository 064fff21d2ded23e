"""The strict header: what safetensors writes is read, what no sound writer writes is refused by name."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import raw_safetensors
from upcycle.checkpoint.header import BLOCK, DTYPE_BITS, build_header, read_header, tensor_bytes
from upcycle.errors import CheckpointError

GOOD = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
"""2 * 3 values of 2 bytes = 12 bytes."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def refusal(file: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    return caught.value


def facts(error: CheckpointError) -> tuple[str, object, object, str | None]:
    return error.what, error.found, error.expected, error.hint


# -- sound files ------------------------------------------------------------------------------------------------------


def test_reads_what_safetensors_writes_with_numpy(file: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array(7, dtype=np.int64),
        "c.weight": np.zeros((0, 4), dtype=np.float16),
    }
    safetensors.numpy.save_file(arrays, file, metadata={"format": "np"})
    header = read_header(file)
    assert header.size == file.stat().st_size
    data = file.read_bytes()
    for name, array in arrays.items():
        spec = header.tensors[name]
        assert (spec.name, spec.shape, spec.path) == (name, array.shape, file)
        assert spec.elements == array.size
        assert data[spec.offset : spec.offset + spec.nbytes] == array.tobytes()
    assert {name: spec.dtype for name, spec in header.tensors.items()} == {"b": "F32", "a": "I64", "c.weight": "F16"}


@pytest.mark.parametrize(
    ("dtype", "word"),
    [
        (torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float32, "F32"), (torch.float64, "F64"),
        (torch.bool, "BOOL"), (torch.uint8, "U8"), (torch.int8, "I8"), (torch.int16, "I16"), (torch.int32, "I32"),
        (torch.float8_e4m3fn, "F8_E4M3"), (torch.float8_e5m2, "F8_E5M2"), (torch.uint16, "U16"),
        (torch.complex64, "C64"),
    ],
)  # fmt: skip
def test_reads_every_dtype_that_torch_saves(file: Path, dtype: torch.dtype, word: str) -> None:
    safetensors.torch.save_file({"x": torch.zeros(3, 5, dtype=dtype)}, file)
    spec = read_header(file).tensors["x"]
    assert (spec.dtype, spec.nbytes) == (word, 15 * dtype.itemsize)


def test_tensors_are_in_the_order_of_their_data(file: Path) -> None:
    second = {"dtype": "U8", "shape": [3], "data_offsets": [12, 15]}
    header = read_header(raw_safetensors(file, {"second": second, "first": GOOD}, bytes(15)))
    assert list(header.tensors) == ["first", "second"]
    start = file.stat().st_size - 15
    assert [spec.offset for spec in header.tensors.values()] == [start, start + 12]


def test_a_file_without_tensors_is_sound(file: Path) -> None:
    assert read_header(raw_safetensors(file, {})).tensors == {}


def test_hash_is_of_the_header_alone(file: Path, tmp_path: Path) -> None:
    one = read_header(raw_safetensors(file, {"x": GOOD}, bytes(12)))
    same = read_header(raw_safetensors(tmp_path / "b.safetensors", {"x": GOOD}, b"another data"))
    other = read_header(raw_safetensors(tmp_path / "c.safetensors", {"y": GOOD}, bytes(12)))
    assert one.sha256 == same.sha256 != other.sha256


@pytest.mark.parametrize(("dtype", "shape", "expected"), [("F4", (3,), 2), ("F6_E2M3", (4,), 3), ("F32", (), 4)])
def test_tensor_bytes(dtype: str, shape: tuple[int, ...], expected: int) -> None:
    # 3 * 4 bits = 12 bits -> 2 bytes; 4 * 6 bits = 24 bits = 3 bytes; a scalar of 32 bits
    assert tensor_bytes(dtype, shape) == expected


# -- the file as a whole ----------------------------------------------------------------------------------------------


def test_empty_file(file: Path) -> None:
    file.touch()
    assert facts(refusal(file)) == ("too short", "0 bytes", "a safetensors file", None)


def test_seven_bytes(file: Path) -> None:
    file.write_bytes(bytes(7))
    assert facts(refusal(file)) == ("too short", "7 bytes", "a safetensors file", None)


def test_git_lfs_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14\n")
    assert facts(refusal(file)) == (
        "is a Git LFS pointer, not the weights", None, None, "fetch the file itself with `git lfs pull`",
    )  # fmt: skip


def test_absent_file(file: Path) -> None:
    assert refusal(file).what == "cannot be read (No such file or directory)"


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001])
def test_header_larger_than_any(file: Path, length: int) -> None:
    file.write_bytes(struct.pack("<Q", length) + b"{}")
    assert facts(refusal(file)) == ("header too large", f"{length} bytes", "at most 100 MB", None)


def test_header_longer_than_the_file(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 3) + b"{}")
    # 8 bytes of length, 2 of JSON; 8 + 3 would be needed
    assert facts(refusal(file)) == ("header longer than the file", "10 bytes", "at least 11", "download the file again")


def test_truncated_data(file: Path) -> None:
    raw_safetensors(file, {"x": GOOD}, bytes(11))
    size = file.stat().st_size
    assert facts(refusal(file)) == ("truncated", f"{size} bytes", size + 1, "download the file again")


def test_trailing_bytes(file: Path) -> None:
    raw_safetensors(file, {"x": GOOD}, bytes(13))
    size = file.stat().st_size
    assert facts(refusal(file)) == ("trailing bytes after the last tensor", size, size - 1, None)


@pytest.mark.parametrize(("second", "kind"), [(8, "overlaps the tensor before it"), (16, "leaves a hole before it")])
def test_tensors_must_tile_the_data(file: Path, second: int, kind: str) -> None:
    entry = {"dtype": "U8", "shape": [4], "data_offsets": [second, second + 4]}
    raw_safetensors(file, {"x": GOOD, "y": entry}, bytes(second + 4))
    start = file.stat().st_size - second - 4
    error = refusal(file)
    assert error.where == f"{file}: tensor 'y'"
    assert facts(error) == (kind, f"offset {start + second}", start + 12, None)


def test_first_tensor_must_start_the_data(file: Path) -> None:
    raw_safetensors(file, {"x": {"dtype": "U8", "shape": [4], "data_offsets": [1, 5]}}, bytes(5))
    assert refusal(file).what == "leaves a hole before it"


def test_tensor_out_of_range(file: Path) -> None:
    raw_safetensors(file, {"x": {"dtype": "U8", "shape": [2**62], "data_offsets": [0, 2**62]}}, bytes(4))
    error = refusal(file)
    assert (error.what, error.expected) == ("truncated", file.stat().st_size - 4 + 2**62)


# -- one entry --------------------------------------------------------------------------------------------------------

MALFORMED = ("malformed entry", None, "exactly dtype, shape and data_offsets", None)
NOT_SIZES = "shape and data_offsets must be lists of non-negative integers"


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [-12, 0]}, {"data_offsets": [0, -12]}, {"data_offsets": [False, 12]},
        {"data_offsets": [0, 12.0]}, {"data_offsets": [0]}, {"data_offsets": [0, 12, 12]},
        {"data_offsets": ["0", "12"]}, {"data_offsets": None},
        {"data_offsets": [0, 2**63]},
        {"shape": [-2, -3]}, {"shape": [True, 6]}, {"shape": [2.0, 3]}, {"shape": 6}, {"shape": [[2], 3]},
        {"shape": [None]}, {"shape": [2**64, 0]},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_are_non_negative_integers(file: Path, change: dict[str, Any]) -> None:
    error = refusal(raw_safetensors(file, {"x": {**GOOD, **change}}, bytes(12)))
    assert (error.what, error.where) == (NOT_SIZES, f"{file}: tensor 'x'")


@pytest.mark.parametrize(
    ("change", "found", "expected"),
    [
        ({"shape": [2, 4]}, "12 bytes", "2 bytes for each of the elements of [2, 4]"),
        ({"shape": []}, "12 bytes", "2 bytes for each of the elements of []"),
        ({"dtype": "F32"}, "12 bytes", "4 bytes for each of the elements of [2, 3]"),
        ({"dtype": "F4"}, "12 bytes", "0.5 bytes for each of the elements of [2, 3]"),
        ({"data_offsets": [12, 0]}, "-12 bytes", "2 bytes for each of the elements of [2, 3]"),
        # The product is 0, but no reader could hold the strides.
        (
            {"shape": [2**62, 2**62, 0], "data_offsets": [0, 0]},
            "0 bytes",
            f"2 bytes for each of the elements of [{2**62}, {2**62}, 0]",
        ),
        # 2^32 * 2^32 wraps around to 0 in 64 bits.
        (
            {"shape": [2**32, 2**32], "data_offsets": [0, 0]},
            "0 bytes",
            "2 bytes for each of the elements of [4294967296, 4294967296]",
        ),
    ],
    ids=str,
)
def test_size_must_match_the_shape(file: Path, change: dict[str, Any], found: str, expected: str) -> None:
    error = refusal(raw_safetensors(file, {"x": {**GOOD, **change}}, bytes(12)))
    assert facts(error) == ("size does not match its shape", found, expected, None)


def test_sixty_five_dimensions(file: Path) -> None:
    entry = {"dtype": "U8", "shape": [1] * 65, "data_offsets": [0, 1]}
    error = refusal(raw_safetensors(file, {"x": entry}, bytes(1)))
    assert facts(error) == ("too many dimensions", 65, "at most 64", None)


def test_a_million_dimensions(file: Path) -> None:
    entry = {"dtype": "U8", "shape": [2] * 1_000_000, "data_offsets": [0, 1]}
    assert facts(refusal(raw_safetensors(file, {"x": entry}, bytes(1)))) == MALFORMED


def test_sixty_four_dimensions_are_fine(file: Path) -> None:
    entry = {"dtype": "U8", "shape": [1] * 64, "data_offsets": [0, 1]}
    assert read_header(raw_safetensors(file, {"x": entry}, bytes(1))).tensors["x"].shape == (1,) * 64


@pytest.mark.parametrize("dtype", ["Q4_0", "bf16", "", None, 16, ["BF16"], "F8_E4M3\n" * 40], ids=ascii)
def test_unknown_dtype(file: Path, dtype: Any) -> None:
    error = refusal(raw_safetensors(file, {"x": {**GOOD, "dtype": dtype}}, bytes(12)))
    assert facts(error) == ("unknown dtype", repr(dtype)[:40], None, None)


@pytest.mark.parametrize(
    "entry",
    [
        {**GOOD, "strides": [3, 1]}, {**GOOD, "data_offsets": {"0": 12}}, {"dtype": "BF16", "shape": [2, 3]},
        {}, [], None, "BF16", 12,
    ],
    ids=str,
)  # fmt: skip
def test_entry_has_exactly_its_three_fields(file: Path, entry: Any) -> None:
    error = refusal(raw_safetensors(file, {"x": entry}, bytes(12)))
    assert facts(error) == MALFORMED


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b", "/etc/passwd", "..", "a..b", "a\\b", "a\nb", "a\x00b", "a\x1b[31mb", "a\u202eb"],
    ids=ascii,
)
def test_unsafe_names(file: Path, name: str) -> None:
    error = refusal(raw_safetensors(file, {name: GOOD}, bytes(12)))
    assert facts(error) == ("unsafe tensor name", ascii(name), None, None)
    assert str(error).isprintable()


@pytest.mark.parametrize("name", ["model.layers.0.weight", "größe", "名前", "a b", "a:b", "x" * 500])
def test_safe_names(file: Path, name: str) -> None:
    assert list(read_header(raw_safetensors(file, {name: GOOD}, bytes(12))).tensors) == [name]


# -- the JSON ---------------------------------------------------------------------------------------------------------

ENTRY = json.dumps(GOOD)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f'{{"x": {ENTRY}, "x": {ENTRY}}}', "duplicate key 'x'"),
        (
            '{"x": {"dtype": "BF16", "dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}',
            "duplicate key 'dtype'",
        ),
        ('{"__metadata__": {"a": "1", "a": "2"}}', "duplicate key 'a'"),
        ('{"x": {"dtype": "BF16", "shape": [NaN], "data_offsets": [0, 12]}}', "NaN is not a JSON number"),
        ('{"x": {"dtype": "BF16", "shape": [-Infinity], "data_offsets": [0, 12]}}', "-Infinity is not a JSON number"),
        ('{"x": {"dtype": "BF16", "shape": [1e999], "data_offsets": [0, 12]}}', "1e999 is out of range"),
        (
            '{"x": {"dtype": "BF16", "shape": [-0, 6], "data_offsets": [0, 12]}}',
            "-0 is not a whole number to all readers",
        ),
        ('{"x": {"dtype": "BF16", "shape": ' + "[" * 8000 + "]" * 8000 + "}}", "nested too deeply"),
    ],
    ids=["top level", "in an entry", "in the metadata", "NaN", "infinity", "1e999", "minus zero", "nesting"],
)
def test_json_must_be_strict(file: Path, text: str, reason: str) -> None:
    assert facts(refusal(raw_safetensors(file, text.encode()))) == (f"not valid JSON ({reason})", None, None, None)


@pytest.mark.parametrize(
    "text",
    [
        b'{"x\xff": 1}',
        b"{",
        b"{} {}",
        b"{'x': 1}",
        b'{"x": %s,}' % ENTRY.encode(),
        b'{"x" {}}',
        b'{"\\x": {}}',
        b'{"a\\ud800b": {}}',
    ],
    ids=["not UTF-8", "cut", "two documents", "quotes", "comma", "colon", "escape", "half a pair"],
)
def test_not_json(file: Path, text: bytes) -> None:
    assert refusal(raw_safetensors(file, text)).what.startswith("not valid JSON (")


def test_a_number_of_many_digits(file: Path) -> None:
    text = b'{"x": {"dtype": "U8", "shape": [%s], "data_offsets": [0, 1]}}' % (b"9" * 5000)
    assert refusal(raw_safetensors(file, text)).what.startswith("not valid JSON (Exceeds")


@pytest.mark.parametrize("text", [b"[]", b"null", b"3", b'"x"', b"", b" {}", json.dumps({"x": 1}).encode("utf-16")])
def test_header_must_be_an_object(file: Path, text: bytes) -> None:
    assert refusal(raw_safetensors(file, text)).what.startswith(("the header does not begin with", "not valid JSON"))


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": None}, {"a": {}}, [], None, "pt"], ids=str)
def test_metadata_must_be_strings(file: Path, metadata: Any) -> None:
    error = refusal(raw_safetensors(file, {"__metadata__": metadata}))
    assert error.what == "__metadata__ must map strings to strings"


def test_any_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """Every single-bit change of a small file's header is refused, or gives a header whose tensors fit the file."""
    good = tmp_path / "good.safetensors"
    safetensors.numpy.save_file({"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), dtype=np.float16)}, good)
    data = good.read_bytes()
    start = min(spec.offset for spec in read_header(good).tensors.values())
    bad, refused = tmp_path / "bad.safetensors", 0
    for position in range(start):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            bad.write_bytes(damaged)
            try:
                header = read_header(bad)
            except CheckpointError:
                refused += 1
            else:
                assert sum(spec.nbytes for spec in header.tensors.values()) == 12 + 8
    assert refused > start * 8 // 2  # the rest are other names of the same lengths


# -- writing ----------------------------------------------------------------------------------------------------------

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="/\\."), min_size=1
).filter(
    lambda name: name != "__metadata__"  # reserved by the format
)
TENSORS = st.lists(
    st.tuples(NAMES, st.sampled_from(["BF16", "F16", "F32", "F64", "I64", "U8", "BOOL"]), SHAPES),
    max_size=6,
    unique_by=lambda tensor: tensor[0],
)


@given(tensors=TENSORS, residue=st.integers(0, BLOCK - 1))
def test_data_starts_at_the_residue_asked_for(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[str, str, tuple[int, ...]]], residue: int
) -> None:
    header = build_header(tensors, residue=residue)
    assert len(header) % BLOCK == residue
    file = tmp_path_factory.getbasetemp() / "built.safetensors"
    data = os.urandom(sum(tensor_bytes(dtype, shape) for _, dtype, shape in tensors))
    file.write_bytes(header + data)
    read = read_header(file)
    assert [(spec.name, spec.dtype, spec.shape) for spec in sorted_by(read.tensors, tensors)] == tensors
    with safetensors.safe_open(file, "pt") as theirs:
        assert theirs.metadata() == {"format": "pt"}
        assert set(theirs.keys()) == {name for name, _, _ in tensors}
        for name, spec in read.tensors.items():
            values = theirs.get_tensor(name)
            assert tuple(values.shape) == spec.shape
            raw = values.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
            assert raw == (header + data)[spec.offset : spec.offset + spec.nbytes]


def sorted_by(specs: dict[str, Any], tensors: list[tuple[str, str, tuple[int, ...]]]) -> list[Any]:
    return [specs[name] for name, _, _ in tensors]


@given(tensors=TENSORS)
def test_without_a_residue_data_starts_at_a_multiple_of_eight(tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    header = build_header(tensors, metadata={"made by": "a test"})
    assert len(header) % 8 == 0
    entries = json.loads(header[8:])
    assert entries.pop("__metadata__") == {"made by": "a test"}
    ends = [entry["data_offsets"][1] for entry in entries.values()]
    assert [entry["data_offsets"][0] for entry in entries.values()] == [0, *ends][: len(ends)]


def test_golden_header() -> None:
    # 8 bytes of length + 89 bytes of JSON = 97; the next multiple of 8 is 104, so 7 spaces and a length of 96.
    text = b'{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
    assert len(text) == 89
    assert build_header([("w", "BF16", (2, 3))]) == struct.pack("<Q", 96) + text + b" " * 7


def test_every_dtype_is_one_that_safetensors_knows(file: Path) -> None:
    for dtype, bits in DTYPE_BITS.items():
        file.write_bytes(build_header([("x", dtype, (8,))]) + bytes(bits))
        with safetensors.safe_open(file, "np") as theirs:
            assert theirs.get_slice("x").get_dtype() == dtype
