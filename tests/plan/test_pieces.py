"""Tensors put together from whole tensors and zeros: their bytes are moved as they are, never read as numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.plan.test_make import CONFIG, carry_out
from upcycle.checkpoint.header import TensorSpec, build_header, read_header
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.plan.account import account
from upcycle.plan.compare import Comparison, compare_tensors
from upcycle.plan.compute import encoded_blocks
from upcycle.plan.layout import lay_out
from upcycle.plan.make import Making
from upcycle.plan.plan import Plan, Write
from upcycle.plan.receipt import read_receipt
from upcycle.plan.sources import Blank, Columns, Copy, Part, Scaled, Source, Stacked

GATE, UP, WIDE = 6, 10, 4
"""Values of the tensors; `wide` is float32, the others bfloat16."""


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, TensorSpec]:
    """Every value is a signalling NaN with a payload of its own, which arithmetic would make quiet."""
    (tmp_path / "base").mkdir()
    path = tmp_path / "base" / "model.safetensors"
    bits = np.arange(GATE + UP, dtype="<u2") % 63 + 0x7F81
    entries = [("gate", "BF16", (GATE // 2, 2)), ("up", "BF16", (UP // 2, 2)), ("wide", "F32", (WIDE // 2, 2))]
    path.write_bytes(build_header(entries) + bits.tobytes() + bytes(WIDE * 4))
    return dict(read_header(path).tensors)


def raw(spec: TensorSpec) -> bytes:
    return spec.path.read_bytes()[spec.offset : spec.offset + spec.nbytes]


def write(name: str, source: Source, rows: int, dtype: str = "BF16") -> Write:
    return Write(name, dtype, (rows, 2), "experts", source)


def fused(specs: dict[str, TensorSpec], experts: int) -> Stacked:
    """An expert is gate, up and a row of zeros."""
    return Stacked((Stacked((Copy(specs["gate"]), Copy(specs["up"]), Blank(2))),) * experts)


def planned(specs: dict[str, TensorSpec]) -> Plan:
    header = read_header(specs["gate"].path)
    writes = [
        Write("attention", "BF16", (3, 2), "attention", Copy(specs["gate"])),
        write("experts", fused(specs, 2), 18),
        write("shared", Stacked((Copy(specs["gate"]), Copy(specs["up"]))), 8),
    ]
    return Plan(
        shards=lay_out(writes, 10**6),
        config=CONFIG,
        files={},
        sources={header.path.name: {"size": header.size, "header_sha256": header.sha256}},
        active_experts=1, total_experts=2, layers=1, sparse_layers=1, cache_width=8, longest=64, hidden=8, width=12,
        vocabulary=16,
    )  # fmt: skip


@pytest.fixture
def made(specs: dict[str, TensorSpec], tmp_path: Path) -> Path:
    making = Making(tmp_path / "out", (tmp_path / "base",), workers=2)
    assert carry_out(planned(specs), making) == ()
    return making.out


def compared(plan: Plan, out: Path) -> Comparison:
    made = open_checkpoint(out)
    return compare_tensors(plan, made, read_receipt(made), 1, lambda _: None)


def test_pieces_are_moved_bit_for_bit(specs: dict[str, TensorSpec], made: Path) -> None:
    tensors = read_header(made / "model.safetensors").tensors
    expert = raw(specs["gate"]) + raw(specs["up"]) + bytes(4)
    assert raw(tensors["experts"]) == 2 * expert
    assert raw(tensors["shared"]) == expert[:-4]
    assert b"".join(encoded_blocks(write("experts", fused(specs, 2), 18))) == 2 * expert


def test_copies_are_compared_and_what_is_put_together_has_a_hash(specs: dict[str, TensorSpec], made: Path) -> None:
    plan = planned(specs)
    assert read_receipt(open_checkpoint(made))["computed_sha256"].keys() == {"shared"}
    found = compared(plan, made)
    assert (found.copied, found.computed, found.different) == (2, 1, [])
    assert account(plan, 2).computed == 0


@pytest.mark.parametrize("at", [0, 13, 36, 71])  # gate, up, the second expert's gate, its zeros
def test_a_changed_byte_is_found(specs: dict[str, TensorSpec], made: Path, at: int) -> None:
    spec = read_header(made / "model.safetensors").tensors["experts"]
    with spec.path.open("rb+") as file:
        file.seek(spec.offset + at)
        file.write(b"\x55")
    assert compared(planned(specs), made).different == [f"experts: differs from its source at byte {at}"]


@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        (lambda specs: Stacked((Copy(specs["gate"]), Scaled(specs["up"], 2.0))), "BF16"),
        (lambda specs: Stacked((Copy(specs["gate"]), Copy(specs["wide"]))), "BF16"),
        (lambda specs: Stacked((Copy(specs["gate"]), Copy(specs["up"]))), "F32"),
        (lambda specs: Stacked((Copy(specs["gate"]), Columns((Copy(specs["gate"]), Blank(3)), 3))), "BF16"),
    ],
    ids=["scaled", "of another dtype", "cast", "side by side"],
)
def test_what_is_more_than_pieces(
    specs: dict[str, TensorSpec], source: Callable[[dict[str, TensorSpec]], Part], dtype: str
) -> None:
    some = write("x", source(specs), 8, dtype)
    assert some.pieces is None
    assert some.hashed
