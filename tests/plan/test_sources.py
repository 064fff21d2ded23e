"""Tensors put together from others: the arithmetic by hand and by torch, whatever the blocks, with little memory."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.pairwise import pairwise
from tests.plan.test_compute import TORCH, as_floats, raw
from upcycle.checkpoint.header import DTYPE_BITS, TensorSpec, read_header
from upcycle.errors import InputError
from upcycle.plan import compute, values
from upcycle.plan.finite import tensors_read
from upcycle.plan.plan import Shard, Write, source_files
from upcycle.plan.sources import (
    Columns,
    Copy,
    LowRank,
    Normal,
    Part,
    RowScaled,
    Scaled,
    Source,
    Stacked,
    Zeros,
    describe,
    elements,
    moves,
    reads,
)  # fmt: skip

OUT, IN, RANK, EXPERTS = 24, 40, 4, 3
BLOCKS = (1, 7, 100, 2**20)
BASES = ("F32", "BF16", "F16")


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of another size; what comes out must not depend on it."""
    monkeypatch.setattr(values, "BLOCK_ELEMENTS", request.param)
    monkeypatch.setattr(compute, "CACHED_ELEMENTS", request.param)
    return int(request.param)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "w": (OUT, IN), "v": (8, IN), "a": (EXPERTS, RANK, IN), "b": (EXPERTS, OUT, RANK), "by": (EXPERTS, OUT),
        "down": (EXPERTS, OUT, 16),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(params=BASES)
def specs(request: pytest.FixtureRequest, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """`w` and `v` in the dtype of the base, the rest in float32, as an adapter has it."""
    base = {name: tensors[name].to(TORCH[request.param]) for name in ("w", "v")}
    save_file(base, tmp_path / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if name not in base}
    save_file(rest, tmp_path / "adapter_model.safetensors")
    return {
        name: spec
        for file in ("model.safetensors", "adapter_model.safetensors")
        for name, spec in read_header(tmp_path / file).tensors.items()
    }


def of_expert(spec: TensorSpec, expert: int) -> TensorSpec:
    """A slice along the first axis."""
    shape = spec.shape[1:]
    nbytes = math.prod(shape) * DTYPE_BITS[spec.dtype] // 8
    return TensorSpec(spec.name, spec.dtype, shape, spec.path, spec.offset + expert * nbytes, nbytes)


def loaded(spec: TensorSpec) -> torch.Tensor:
    """The tensor, or slice of one, as float32."""
    data = bytearray(spec.path.read_bytes()[spec.offset : spec.offset + spec.nbytes])
    return torch.frombuffer(data, dtype=TORCH[spec.dtype]).reshape(spec.shape).float()


def expected(source: Part) -> torch.Tensor:
    """What torch makes of `source`."""
    if isinstance(source, Stacked):
        return torch.cat([expected(part) for part in source.parts])
    if isinstance(source, Columns):
        return torch.cat([expected(part).reshape(source.rows, -1) for part in source.parts], dim=1)
    assert isinstance(source, Copy | Scaled | LowRank | RowScaled)
    tensor = loaded(source.tensor)
    if isinstance(source, Scaled):
        return tensor * source.factor
    if isinstance(source, LowRank):
        return tensor + source.factor * (loaded(source.b).double() @ loaded(source.a).double()).float()
    return (1 + loaded(source.by))[:, None] * tensor if isinstance(source, RowScaled) else tensor


def lora(specs: dict[str, TensorSpec], expert: int) -> LowRank:
    return LowRank(specs["w"], of_expert(specs["a"], expert), of_expert(specs["b"], expert), 0.25)


def every(specs: dict[str, TensorSpec]) -> dict[str, Part]:
    width = Columns((Copy(specs["w"]), Scaled(of_expert(specs["down"], 1), 1.5)), OUT)
    return {
        "scaled": Scaled(specs["w"], -1.5),
        "low rank": lora(specs, 1),
        "row scaled": RowScaled(specs["w"], of_expert(specs["by"], 2)),
        "stacked": Stacked((Copy(specs["w"]), Copy(specs["v"]), lora(specs, 2))),
        "columns": width,
        "columns of stacks": Columns((Stacked((Copy(specs["v"]),) * 3), lora(specs, 0), Copy(specs["w"])), OUT),
        "fused experts": Stacked(tuple(lora(specs, expert) for expert in range(EXPERTS))),
        "fused wide experts": Stacked((width, width)),
    }


KINDS = (
    "scaled", "low rank", "row scaled", "stacked", "columns", "columns of stacks", "fused experts",
    "fused wide experts",
)  # fmt: skip


def made(source: Source, dtype: str, count: int) -> bytes:
    return b"".join(compute.encoded_blocks(Write("x", dtype, (count,), "experts", source)))


# -- values -----------------------------------------------------------------------------------------------------------


def test_golden(tmp_path: Path) -> None:
    """By hand: B A = (1, 2)^T (10, 20, 30) = ((10, 20, 30), (20, 40, 60)), halved and added to ((1, 2, 3), (4, 5, 6));
    the rows of W times 1 - 1/2 and 1 + 1; W beside and above itself.
    """
    path = tmp_path / "file.safetensors"
    given = {"w": [[1, 2, 3], [4, 5, 6]], "a": [[10, 20, 30]], "b": [[1], [2]], "by": [-0.5, 1]}
    save_file({name: torch.tensor(values, dtype=torch.float32) for name, values in given.items()}, path)
    spec = read_header(path).tensors
    w = spec["w"]
    for source, values_ in (
        (Scaled(w, 2), [2, 4, 6, 8, 10, 12]),
        (LowRank(w, spec["a"], spec["b"], 0.5), [6, 12, 18, 14, 25, 36]),
        (RowScaled(w, spec["by"]), [0.5, 1, 1.5, 8, 10, 12]),
        (Stacked((Copy(w), Scaled(w, -1))), [1, 2, 3, 4, 5, 6, -1, -2, -3, -4, -5, -6]),
        (Columns((Copy(w), Scaled(w, -1)), 2), [1, 2, 3, -1, -2, -3, 4, 5, 6, -4, -5, -6]),
    ):
        assert as_floats(made(source, "F32", len(values_))).tolist() == values_


@pytest.mark.parametrize(("kind", "block", "specs"), pairwise(KINDS, BLOCKS, BASES), indirect=["block", "specs"])
def test_as_torch_computes_it(specs: dict[str, TensorSpec], kind: str, block: int) -> None:  # noqa: ARG001
    source = every(specs)[kind]
    theirs = expected(source).reshape(-1)
    assert elements(source) == len(theirs)
    ours = torch.from_numpy(as_floats(made(source, "F32", len(theirs))).copy())
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "dtype", "specs"), pairwise(KINDS, ("F32", "BF16"), BASES), indirect=["specs"])
def test_the_same_bytes_whatever_the_blocks(
    specs: dict[str, TensorSpec], kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = every(specs)[kind]
    count = elements(source)
    results = set()
    for block in (1, 37, 200, 2**20):
        monkeypatch.setattr(values, "BLOCK_ELEMENTS", block)
        monkeypatch.setattr(compute, "CACHED_ELEMENTS", block)
        results.add(made(source, dtype, count))
    assert len(results) == 1


@pytest.mark.parametrize(("kind", "dtype", "specs"), pairwise(KINDS, ("BF16", "F16"), BASES), indirect=["specs"])
def test_rounded_once_from_float32(specs: dict[str, TensorSpec], kind: str, dtype: str) -> None:
    source = every(specs)[kind]
    count = elements(source)
    single = torch.from_numpy(as_floats(made(source, "F32", count)).copy())
    assert made(source, dtype, count) == raw(single.to(TORCH[dtype]))


def test_values_that_only_move_keep_their_bits(specs: dict[str, TensorSpec], block: int) -> None:  # noqa: ARG001
    w, v = specs["w"], specs["v"]
    data = w.path.read_bytes()
    one, other = (data[spec.offset : spec.offset + spec.nbytes] for spec in (w, v))
    assert made(Stacked((Copy(w), Copy(v))), w.dtype, w.elements + v.elements) == one + other
    row = w.nbytes // OUT
    rows = (one[start : start + row] * 2 for start in range(0, len(one), row))
    assert made(Columns((Copy(w), Copy(w)), OUT), w.dtype, 2 * w.elements) == b"".join(rows)


def test_float64_is_computed_in_float32_and_moved_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    w = torch.tensor([[1 / 3, 1e300]], dtype=torch.float64)
    save_file({"w": w, "third": w[:, :1].clone()}, path)
    spec = read_header(path).tensors
    assert made(Columns((Copy(spec["w"]), Copy(spec["w"])), 1), "F64", 4) == raw(torch.cat([w, w]))
    third = np.float32(1 / 3) * np.float32(3)
    assert as_floats(made(Scaled(spec["third"], 3), "F32", 1)).tolist() == [third]


def test_what_is_not_finite(tmp_path: Path) -> None:
    """Kept where values only move, as by a copy; refused where they are computed."""
    path = tmp_path / "file.safetensors"
    save_file(
        {"w": torch.tensor([[1.0, math.inf], [3e38, math.nan]]), "one": torch.ones(1, 2), "by": torch.ones(2)}, path
    )
    spec = read_header(path).tensors
    moved = as_floats(made(Stacked((Copy(spec["w"]),)), "F32", 4))
    assert np.array_equal(moved, np.array([1, np.inf, 3e38, np.nan], np.float32), equal_nan=True)
    two = TensorSpec("two", "F32", (2, 1), path, spec["by"].offset, 8)
    for source in (
        Scaled(spec["w"], 1), RowScaled(spec["w"], spec["by"]), LowRank(spec["w"], spec["one"], two, 1),
        Stacked((Scaled(spec["w"], 1),)), Columns((Copy(spec["w"]), Scaled(spec["w"], 1)), 2),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            made(source, "F32", elements(source))
        assert caught.value.what == "tensor 'x' does not fit F32"


def test_blocks_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"w": torch.ones(100, 10), "a": torch.ones(2, 10), "b": torch.ones(100, 2)}, path)
    spec = read_header(path).tensors
    monkeypatch.setattr(values, "BLOCK_ELEMENTS", 64)
    adapted = LowRank(spec["w"], spec["a"], spec["b"], 1)
    for source in (Scaled(spec["w"], 2), adapted, Stacked((adapted,)), Columns((adapted, Copy(spec["w"])), 100)):
        write = Write("x", "F32", (elements(source),), "experts", source)
        sizes = [len(data) // 4 for data in compute.encoded_blocks(write)]
        assert sum(sizes) == elements(source)
        assert 40 <= max(sizes) <= 64


# -- descriptions -----------------------------------------------------------------------------------------------------


def test_reads(specs: dict[str, TensorSpec]) -> None:
    w, v, by = specs["w"], specs["v"], of_expert(specs["by"], 0)
    low = lora(specs, 1)
    assert reads(Zeros()) == reads(Normal(1.0, "0:x")) == ()
    assert reads(Copy(w)) == (w,)
    assert reads(low) == (w, low.a, low.b)
    assert reads(Stacked((Columns((low, Copy(w)), OUT), Copy(v), RowScaled(w, by)))) == (w, low.a, low.b, w, v, w, by)
    write = Write("x", "F32", (1,), "experts", Stacked((low, Copy(v), Scaled(w, 2))))
    assert tensors_read([write, write]) == [w, low.a, low.b, v]
    assert source_files([Shard("model.safetensors", (write,), None)]) == sorted({w.path, low.a.path})


def test_moves(specs: dict[str, TensorSpec]) -> None:
    copy, scaled = Copy(specs["w"]), Scaled(specs["w"], 1.0)
    assert moves(copy)
    assert moves(Stacked((copy, Columns((copy, copy), OUT))))
    assert not moves(Stacked((copy, Columns((copy, scaled), OUT))))
    assert not moves(Zeros())


def test_lossless(specs: dict[str, TensorSpec]) -> None:
    low = lora(specs, 0)
    assert Write("x", "F32", (1,), "experts", low).lossless
    assert not Write("x", "BF16", (1,), "experts", low).lossless, "the factors are float32"
    base = specs["w"].dtype
    assert Write("x", base, (1,), "experts", Stacked((Copy(specs["w"]),))).lossless


def test_descriptions_are_json_without_paths_and_tell_sources_apart(specs: dict[str, TensorSpec]) -> None:
    sources = [*every(specs).values(), *(lora(specs, expert) for expert in (0, 2))]
    texts = {json.dumps(describe(source)) for source in sources}
    assert len(texts) == len(sources)
    assert all(str(specs["w"].path.parent) not in text for text in texts)
    w = specs["w"]
    named = ["w", w.dtype, [OUT, IN], "model.safetensors", w.offset]
    assert describe(Columns((Copy(w), Scaled(w, 0.5)), OUT)) == {
        "kind": "columns",
        "parts": [{"kind": "copy", "tensor": named}, {"kind": "scaled", "tensor": named, "factor": 0.5}],
        "rows": OUT,
    }


def test_shapes_that_do_not_fit(specs: dict[str, TensorSpec]) -> None:
    w, v = specs["w"], specs["v"]
    low = lora(specs, 0)
    for wrong in (
        lambda: LowRank(v, low.a, low.b, 1),
        lambda: LowRank(w, low.b, low.a, 1),
        lambda: RowScaled(v, of_expert(specs["by"], 0)),
        lambda: Columns((Copy(w), Copy(v)), OUT),
    ):
        with pytest.raises(ValueError, match=r"no 24 rows|with"):
            wrong()
