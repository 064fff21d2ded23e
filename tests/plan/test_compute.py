"""Computed tensors: the same bits as torch's casts, and streams that depend on seed and name alone."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from upcycle.checkpoint.header import TensorSpec, tensor_bytes
from upcycle.errors import CheckpointError, InputError
from upcycle.plan import compute, values
from upcycle.plan.compute import encoded_blocks, standard_deviation
from upcycle.plan.plan import Write
from upcycle.plan.sources import Constant, Copy, Noise, Normal, Source, Zeros, random_key
from upcycle.plan.values import decode, encode, read_blocks

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
ALL_16_BITS = np.arange(65536, dtype=np.uint16)


def a_write(dtype: str, source: Source, shape: tuple[int, ...] = (1,)) -> Write:
    return Write("x", dtype, shape, "experts", source)


def on_disk(path: Path, values: torch.Tensor, dtype: str, *, before: int = 24) -> TensorSpec:
    """The tensor's bytes at an odd place of a file that goes on after them."""
    data = raw(values.to(TORCH[dtype]))
    path.write_bytes(bytes(before) + data + b"\xff" * 16)
    return TensorSpec("x", dtype, tuple(values.shape), path, before, len(data))


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def made(write: Write) -> bytes:
    return b"".join(encoded_blocks(write))


def as_floats(data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(data, dtype="<f4")


def anywhere() -> TensorSpec:
    return TensorSpec("x", "F32", (1,), Path("nowhere"), 0, 4)


def cast(values: np.ndarray, dtype: str) -> bytes:
    """Encode as a cast of a source tensor, in which infinities may stand."""
    return encode(values, a_write(dtype, Copy(anywhere())))


# -- decode and encode ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_pattern_of_16_bits_is_decoded_as_by_torch(dtype: str) -> None:
    ours = decode(ALL_16_BITS.tobytes(), dtype)
    theirs = torch.frombuffer(bytearray(ALL_16_BITS.tobytes()), dtype=TORCH[dtype]).float().numpy()
    assert ours.dtype == np.float32
    nan = np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), nan)
    assert np.array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))  # signs of zero too


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_pattern_of_16_bits_survives_the_way_there_and_back(dtype: str) -> None:
    back = np.frombuffer(cast(decode(ALL_16_BITS.tobytes(), dtype), dtype), dtype=np.uint16)
    mantissa = {"BF16": 0x007F, "F16": 0x03FF}[dtype]
    exponent = 0x7FFF & ~mantissa
    nan = ((ALL_16_BITS & exponent) == exponent) & ((ALL_16_BITS & mantissa) != 0)
    assert np.array_equal(back[~nan], ALL_16_BITS[~nan])
    assert np.array_equal((back[nan] & exponent), np.full(nan.sum(), exponent))
    assert (back[nan] & mantissa).all(), "NaN must not become infinity"


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_wide_floats_survive_the_way_there_and_back(dtype: str) -> None:
    data = np.random.default_rng(0).standard_normal(1000).astype({"F32": "<f4", "F64": "<f8"}[dtype]).tobytes()
    assert cast(decode(data, dtype), dtype) == data


def hard_floats() -> np.ndarray:
    """Any float32 bits, values near each tie and limit of the 16-bit formats, and the special ones."""
    generator = np.random.default_rng(0)
    any_bits = generator.integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (ALL_16_BITS.astype(np.uint32) << 16) | 0x8000  # half way between neighbours in bf16
    with np.errstate(over="ignore", invalid="ignore"):
        halves = ALL_16_BITS.view(np.float16).astype(np.float32)
        middles = (halves + np.roll(halves, -1)) / 2  # half way between neighbours in f16
    floats = np.concatenate([middles, halves]).astype(np.float32).view(np.uint32)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 65504, 65519.996, 65520, 3.4e38], np.float32)
    bits = np.concatenate([any_bits, ties, ties - 1, ties + 1, floats, floats - 1, floats + 1, special.view(np.uint32)])
    return bits.view(np.float32)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_rounds_as_torch_does(dtype: str) -> None:
    values = hard_floats()
    theirs = torch.from_numpy(values.copy()).to(TORCH[dtype])
    # What overflows is refused, so it is taken out; infinity itself stays.
    keep = ~(np.isfinite(values) & torch.isinf(theirs).numpy())
    assert keep.sum() > 300_000
    ours = torch.frombuffer(bytearray(cast(values[keep], dtype)), dtype=TORCH[dtype])
    expected = theirs[torch.from_numpy(keep)]
    nan = torch.isnan(expected)
    assert torch.equal(torch.isnan(ours), nan)
    assert raw(ours[~nan]) == raw(expected[~nan])


def test_golden_ties() -> None:
    # bf16 keeps 7 bits of the mantissa: 1 + 1/256 is half way between 1 and 1 + 1/128, and 1 is even (0x3F80);
    # 1 + 3/256 is half way between 1 + 1/128 and 1 + 2/128, and the latter is even (0x3F82).
    values = np.array([1 + 1 / 256, 1 + 3 / 256, -1 - 1 / 256], np.float32)
    assert cast(values, "BF16") == np.array([0x3F80, 0x3F82, 0xBF80], "<u2").tobytes()


def test_bfloat16_of_float64_is_rounded_once() -> None:
    # 1 + 2^-8 + 2^-40 lies above the tie between 1 and 1 + 2^-7; as a float32 it would be the tie, and go to 1
    values = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8, -1 - 2**-8 - 2**-40, 3.0, np.pi], np.float64)
    assert cast(values, "BF16") == np.array([0x3F81, 0x3F80, 0xBF81, 0x4040, 0x4049], "<u2").tobytes()


def test_overflow_beside_a_nan_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        cast(np.array([np.nan, 1e30], np.float32), "F16")
    assert caught.value.found == "a value of 1e+30"
    assert np.isnan(np.frombuffer(cast(np.array([np.nan, 1], np.float32), "F16"), "<f2")[0])


@pytest.mark.parametrize(
    ("dtype", "largest", "found"),
    [
        # The first value that rounds up to 2^16, and to 2^128.
        ("F16", 65520.0, "a value of 6.55e+04"),
        ("BF16", 3.3961775e38, "a value of 3.4e+38"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_is_refused(dtype: str, largest: float, found: str, sign: int) -> None:
    bad = np.array([1, sign * largest], np.float32)
    with pytest.raises(InputError) as caught:
        cast(bad, dtype)
    error = caught.value
    assert (error.what, error.found, error.hint) == (
        f"tensor 'x' does not fit {dtype}", found, "--dtype bf16 has the range of float32" if dtype == "F16" else None,
    )  # fmt: skip
    good = np.array([1, np.nextafter(bad[1], np.float32(0))], np.float32)
    assert np.isfinite(torch.frombuffer(bytearray(cast(good, dtype)), dtype=TORCH[dtype]).float().numpy()).all()


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_overflow_of_float64_is_refused(tmp_path: Path, dtype: str) -> None:
    spec = on_disk(tmp_path / "file", torch.tensor([1.0, 1e300], dtype=torch.float64), "F64")
    with pytest.raises(InputError) as caught:
        made(a_write(dtype, Copy(spec), (2,)))
    assert (caught.value.what, caught.value.found) == (f"tensor 'x' does not fit {dtype}", "a value of 1e+300")


def test_float64_is_rounded_to_float32_as_by_torch(tmp_path: Path) -> None:
    values = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spec = on_disk(tmp_path / "file", values, "F64")
    assert made(a_write("F32", Copy(spec), (5000,))) == raw(values.float())
    assert made(a_write("BF16", Copy(spec), (5000,))) == raw(values.to(torch.bfloat16))


def test_infinity_and_nan_of_the_source_are_kept_by_a_cast(tmp_path: Path) -> None:
    spec = on_disk(tmp_path / "file", torch.tensor([1.0, -np.inf, np.nan]), "F32")
    data = torch.frombuffer(bytearray(made(a_write("F16", Copy(spec), (3,)))), dtype=torch.float16)
    assert data[:2].tolist() == [1.0, -np.inf]
    assert data[2].isnan()


@pytest.mark.parametrize("source_dtype", TORCH)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_cast_of_a_tensor_on_disk(tmp_path: Path, source_dtype: str, dtype: str) -> None:
    values = torch.randn(33, 7, generator=torch.Generator().manual_seed(1)).to(TORCH[source_dtype])
    spec = on_disk(tmp_path / "file", values, source_dtype)
    assert made(a_write(dtype, Copy(spec), (33, 7))) == raw(values.float().to(TORCH[dtype]))


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    spec = on_disk(tmp_path / "file", torch.ones(100), "F32")
    spec.path.write_bytes(spec.path.read_bytes()[:-17])
    with pytest.raises(CheckpointError) as caught:
        list(read_blocks(spec))
    assert str(caught.value) == f"{spec.path}: ends before its header says"


# -- streams ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 7, 1000, 2**20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Blocks of another size; what comes out must not depend on it."""
    monkeypatch.setattr(values, "BLOCK_ELEMENTS", request.param)
    yield request.param
    compute._standard_deviation.cache_clear()


GATE = "model.layers.0.block_sparse_moe.gate.weight"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_drawn_router_is_pinned(block: int) -> None:  # noqa: ARG001
    """Receipts out there hold such hashes: neither upcycle nor a new NumPy may change them unnoticed."""
    source = Normal(0.02, random_key(0, GATE))
    assert random_key(0, GATE) == "0:model.layers.0.block_sparse_moe.gate.weight"
    data = made(a_write("F32", source, (8, 64)))
    assert sha256(data) == "4b38baaacd05de492ff4ef7372d5fe7fd880f609c2b792afaef8a4f8cc38e772"
    assert (
        sha256(made(a_write("BF16", source, (8, 64))))
        == "0e4900267f99d4db631abfbbd4a89ae5a9c7bd81778a68208a25fe4b890820d7"
    )
    assert as_floats(data)[:3] == pytest.approx([-0.00725, 0.016522, 0.009369], abs=1e-6)


def test_noise_is_pinned(tmp_path: Path, block: int) -> None:  # noqa: ARG001
    # 0, 1/64, 2/64, ... so that the sums in the standard deviation are exact in any order
    spec = on_disk(tmp_path / "file", torch.arange(512) / 64, "F32")
    assert (
        sha256(made(a_write("F32", Noise(spec, 0.1, "0:expert"), (512,))))
        == "b7e8c5739915018b927446bee3cd3ab287cc4e6e91fac165a11d6e48f8042814"
    )


def test_the_stream_is_numpys_philox_under_the_hash_of_the_key() -> None:
    key = int.from_bytes(hashlib.sha256(b"7:name").digest()[:16], "little")
    expected = np.random.Generator(np.random.Philox(key=key)).standard_normal(100, dtype=np.float32) * np.float32(0.5)
    assert made(a_write("F32", Normal(0.5, random_key(7, "name")), (100,))) == expected.tobytes()


def test_streams_differ_by_seed_and_by_name() -> None:
    keys = [random_key(seed, name) for seed in (0, 1, 10) for name in ("a", "b", "0:a")]
    streams = {made(a_write("F32", Normal(1.0, key), (16,))) for key in keys}
    assert len(streams) == 9


def test_drawn_values_are_normal() -> None:
    values = as_floats(made(a_write("F32", Normal(0.02, "0:x"), (1_000_000,)))).astype(np.float64) / 0.02
    # A million draws: standard errors 0.001 of the mean, 0.0007 of the deviation, 0.0024 of the third moment and
    # 0.0049 of the fourth (less 3); five of each.
    assert abs(values.mean()) < 0.005
    assert abs(values.std() - 1) < 0.0036
    assert abs((values**3).mean()) < 0.02
    assert abs((values**4).mean() - 3) < 0.05
    # Neighbours are independent: a correlation has a standard error of 0.001.
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.005


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
@pytest.mark.parametrize("std", [0.01, 0.5])
def test_noise_is_relative_to_the_tensors_own_deviation(tmp_path: Path, dtype: str, std: float) -> None:
    values = (3 + 0.7 * torch.randn(200_000, generator=torch.Generator().manual_seed(2))).to(TORCH[dtype])
    spec = on_disk(tmp_path / "file", values, dtype)
    added = as_floats(made(a_write("F32", Noise(spec, std, "0:x"), (200_000,)))).astype(np.float64)
    added -= values.double().numpy()
    # 200,000 draws: the standard error of the deviation is 1 / sqrt(400,000) = 0.16%, of the mean 0.22%; five of each.
    scale = std * float(values.double().std())
    assert added.std() == pytest.approx(scale, rel=0.008)
    assert abs(added.mean()) < 0.011 * scale


def test_standard_deviation(tmp_path: Path, block: int) -> None:  # noqa: ARG001
    # 1, 2, 3, 4: mean 2.5, squares 2.25 + 0.25 + 0.25 + 2.25 = 5, over 4 = 1.25
    spec = on_disk(tmp_path / "file", torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "BF16")
    assert standard_deviation(spec) == pytest.approx(1.25**0.5, rel=1e-12)


def test_standard_deviation_follows_a_change_of_the_file(tmp_path: Path) -> None:
    import os

    spec = on_disk(tmp_path / "file", torch.tensor([1.0, 3.0]), "F32")
    assert standard_deviation(spec) == 1.0
    on_disk(tmp_path / "file", torch.tensor([1.0, 5.0]), "F32")
    os.utime(spec.path, ns=(1, 1))
    assert standard_deviation(spec) == 2.0


def test_a_constant_tensor_takes_no_noise(tmp_path: Path) -> None:
    spec = on_disk(tmp_path / "file", torch.full((50,), 0.1), "F32")
    assert made(a_write("F32", Noise(spec, 0.5, "0:x"), (50,))) == raw(torch.full((50,), 0.1))


@pytest.mark.parametrize("dtype", TORCH)
def test_zeros(dtype: str, block: int) -> None:  # noqa: ARG001
    assert made(a_write(dtype, Zeros(), (3, 700))) == bytes(tensor_bytes(dtype, (3, 700)))
    assert made(a_write(dtype, Constant(-32768.0), (5,))) == raw(torch.full((5,), -32768.0, dtype=TORCH[dtype]))


def test_blocks_have_the_size_that_memory_allows(block: int) -> None:
    sizes = [len(data) for data in encoded_blocks(a_write("F32", Normal(1.0, "0:x"), (3000,)))]
    assert sum(sizes) == 3000 * 4
    assert max(sizes) == min(block, 3000) * 4


@pytest.mark.parametrize("source", [Normal(1e39, "0:x"), Normal(1e300, "0:x")], ids=str)
def test_a_draw_that_is_not_finite_is_refused(source: Source) -> None:
    with pytest.raises(InputError) as caught:
        made(a_write("F32", source, (100,)))
    assert (caught.value.what, caught.value.found) == ("tensor 'x' does not fit F32", "a value of inf")


@pytest.mark.parametrize(
    ("values", "std", "found"),
    [([1.0, np.inf], 0.1, "nan"), ([1.0, np.nan], 0.1, "nan"), ([1.0, 3e38], 10.0, "inf"), ([1.0, 2.0], 1e300, "inf")],
    ids=str,
)
def test_noise_that_is_not_finite_is_refused(tmp_path: Path, values: list[float], std: float, found: str) -> None:
    spec = on_disk(tmp_path / "file", torch.tensor(values * 50), "F32")
    with pytest.raises(InputError) as caught:
        made(a_write("F32", Noise(spec, std, "0:x"), (100,)))
    assert (caught.value.what, caught.value.found) == ("tensor 'x' does not fit F32", f"a value of {found}")
