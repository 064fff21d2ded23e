"""Sources that methods of making experts are built from: folds, means, redrawn neurons, slices, blank neurons."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.plan.test_compute import as_floats
from upcycle.checkpoint.header import TensorSpec, read_header, rows_of
from upcycle.plan import compute, values
from upcycle.plan.compute import chosen_neurons
from upcycle.plan.plan import Write
from upcycle.plan.sources import (
    Blank,
    Columns,
    Copy,
    Fold,
    LowRank,
    Mean,
    Noise,
    Part,
    Redrawn,
    Reordered,
    Slice,
    Source,
    Stacked,
    describe,
    draws,
    elements,
    moves,
    reads,
)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TensorSpec]:
    path = tmp_path_factory.mktemp("sources") / "model.safetensors"
    given = {"w": [[1, 2, 3], [4, 5, 6]], "v": [[3, 2, 1], [0, 1, 8]], "rows": [10, 100], "columns": [1, 0, -1]}
    tensors = {name: torch.tensor(values_, dtype=torch.float32) for name, values_ in given.items()}
    tensors["wide"] = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)) * 0.3 + 1
    save_file(tensors, path)
    return read_header(path).tensors


def made(source: Source, dtype: str = "F32") -> list[float]:
    count = elements(source)  # type: ignore[arg-type]
    write = Write("x", dtype, (count,), "experts", source)
    return as_floats(b"".join(compute.encoded_blocks(write))).tolist()  # type: ignore[no-any-return]


def test_golden(specs: dict[str, TensorSpec]) -> None:
    """By hand, with W = ((1, 2, 3), (4, 5, 6)) and V = ((3, 2, 1), (0, 1, 8))."""
    w, v = specs["w"], specs["v"]
    cases: list[tuple[Part, list[float]]] = [
        (Fold(w, add=1), [2, 3, 4, 5, 6, 7]),
        (Fold(w, add=1, factor=2), [4, 6, 8, 10, 12, 14]),  # 2 (W + 1)
        (Fold(w, by=specs["rows"]), [10, 20, 30, 400, 500, 600]),  # row by row
        (Fold(w, by=specs["columns"], axis=1, factor=0.5), [0.5, 0, -1.5, 2, 0, -3]),  # column by column
        (Fold(specs["rows"], add=-1), [9, 99]),  # a norm's weight
        (Reordered(w, (1, 0)), [4, 5, 6, 1, 2, 3]),  # one head of two rows
        (Reordered(specs["rows"], (0,)), [10, 100]),  # a bias, two heads of one row
        (Mean((w, v)), [2, 2, 2, 2, 3, 7]),
        (Mean((w, w, v)), [5 / 3, 2, 7 / 3, 8 / 3, 11 / 3, 20 / 3]),
        (Slice(Copy(w), 3, 1, 3), [2, 3, 5, 6]),
        (Slice(Columns((Copy(w), Copy(v)), 2), 6, 2, 4), [3, 3, 6, 0]),
        (Columns((Copy(w), Blank(4)), 2), [1, 2, 3, 0, 0, 4, 5, 6, 0, 0]),  # two neurons more
        (Stacked((Copy(rows_of(w, 1, 2)), Blank(3))), [4, 5, 6, 0, 0, 0]),
        (Copy(rows_of(v, 0, 1)), [3, 2, 1]),
    ]
    for source, expected in cases:
        assert made(source) == pytest.approx(expected, rel=1e-6), source


@pytest.mark.parametrize("axis", [0, 1])
def test_redrawn_neurons(specs: dict[str, TensorSpec], axis: int) -> None:
    """The others keep their bits; the new ones have mean and std of those they replace (2502.19261, section 3.1)."""
    wide = specs["wide"]
    source = Redrawn(wide, axis, count=24, chosen="0:neurons", key="0:values")
    before = np.array(made(Copy(wide)), np.float32).reshape(wide.shape)
    after = np.array(made(source), np.float32).reshape(wide.shape)
    chosen = chosen_neurons(source)
    assert (len(set(chosen.tolist())), len(chosen)) == (24, 24)
    kept = np.setdiff1d(np.arange(wide.shape[axis]), chosen)
    assert np.array_equal(np.take(before, kept, axis), np.take(after, kept, axis))
    old, new = np.take(before, chosen, axis), np.take(after, chosen, axis)
    assert not np.isclose(old, new).all(axis=axis).any()
    error = 5 * float(old.std()) / old.size**0.5  # five standard errors of the mean
    assert abs(float(new.mean()) - float(old.mean())) < error
    assert abs(float(new.std()) - float(old.std())) < error


def test_matrices_of_one_expert_share_their_neurons_by_the_key(specs: dict[str, TensorSpec]) -> None:
    square = rows_of(specs["wide"], 0, 48)
    gate, down = Redrawn(square, 0, 10, "0:shared", "0:gate"), Redrawn(square, 1, 10, "0:shared", "0:down")
    assert chosen_neurons(gate).tolist() == chosen_neurons(down).tolist()
    assert chosen_neurons(gate).tolist() != chosen_neurons(Redrawn(square, 0, 10, "0:own", "0:gate")).tolist()


def test_the_same_bytes_whatever_the_blocks(specs: dict[str, TensorSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    wide = specs["wide"]
    sources: list[Part] = [
        Fold(wide, add=1, factor=0.5), Mean((wide, wide)), Redrawn(wide, 0, 9, "a", "b"), Redrawn(wide, 1, 9, "a", "b"),
        Slice(Copy(wide), 48, 5, 41), Columns((Noise(wide, 0.1, "n"), Blank(640)), 64),
        Reordered(wide, (0, 2, 1, 3)),
        Slice(Stacked((Copy(wide), Blank(480))), 48, 0, 7),
    ]  # fmt: skip
    whole = [made(source) for source in sources]
    for block in (1, 50, 1000):
        monkeypatch.setattr(values, "BLOCK_ELEMENTS", block)
        assert [made(source) for source in sources] == whole


def test_blocks_are_small(specs: dict[str, TensorSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "BLOCK_ELEMENTS", 96)
    wide = specs["wide"]
    for source in (Fold(wide, add=1), Mean((wide, wide)), Redrawn(wide, 1, 9, "a", "b"), Slice(Copy(wide), 48, 0, 24)):
        write = Write("x", "F32", (elements(source),), "experts", source)
        sizes = [len(data) // 4 for data in compute.encoded_blocks(write)]
        assert sum(sizes) == elements(source)
        assert max(sizes) <= 96


def test_what_they_say_of_themselves(specs: dict[str, TensorSpec]) -> None:
    w, v, wide = specs["w"], specs["v"], specs["wide"]
    assert reads(Mean((w, v))) == (w, v)
    assert reads(Slice(Stacked((Copy(w), Blank(3))), 3, 0, 1)) == (w,)
    assert reads(Fold(w, by=specs["rows"])) == (w, specs["rows"])
    assert moves(Columns((Slice(Copy(w), 3, 0, 1), Blank(2)), 2))
    assert moves(Reordered(w, (1, 0)))
    assert not moves(Fold(w))
    assert draws(Slice(Redrawn(wide, 0, 1, "a", "b"), 48, 0, 2))
    assert not draws(Stacked((Mean((w, v)), Blank(1))))
    described = describe(Slice(Mean((w, v)), 3, 0, 2))
    assert described["part"]["kind"] == "mean"
    assert [tensor[0] for tensor in described["part"]["tensors"]] == ["w", "v"]
    assert str(w.path.parent) not in json.dumps(described)
    assert describe(Fold(w)) != describe(Fold(w, add=1))


def test_shapes_that_do_not_fit(specs: dict[str, TensorSpec]) -> None:
    w, wide = specs["w"], specs["wide"]
    for wrong in (
        lambda: Fold(w, by=specs["columns"]),
        lambda: Reordered(w, (0, 1, 2)),
        lambda: Reordered(w, (1, 1)),
        lambda: Mean((w, wide)),
        lambda: Redrawn(w, 0, 3, "a", "b"),
        lambda: Redrawn(w, 1, 0, "a", "b"),
        lambda: Slice(Copy(w), 3, 1, 4),
        lambda: Slice(Copy(w), 4, 0, 1),
        lambda: LowRank(w, w, w, 1),
    ):
        with pytest.raises(ValueError, match=r"w: |mean of|columns"):
            wrong()
