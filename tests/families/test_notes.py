"""What `plan` and `convert` say of a mixture that computes the same logits, or nearly, and yet not the same text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.conftest import run_convert
from tests.families.test_pairs import load, written
from upcycle.pipeline.stages import plan
from upcycle.requests import Plan


def told(model: Path, word: str, **options: Any) -> bool:
    """Whether the plan of a conversion warns in a sentence with `word`."""
    return any(word in text for text in plan(Plan(model=str(model), experts=4, **options)).warnings)


def test_text_that_grows_past_the_switch_of_longrope(made: Callable[[str], Path], tmp_path: Path) -> None:
    """The factors change after 16 tokens; a prompt that is longer has them from the beginning."""
    dense = made("phi3_longrope")
    assert told(dense, "Phi3ForCausalLM computes its cache anew")
    ours, theirs = load(run_convert(dense, tmp_path / "moe")), load(dense)
    ids_BT = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(3))
    assert not written(ours, ids_BT[:, :8]).equal(written(theirs, ids_BT[:, :8]))
    assert written(ours, ids_BT[:, :17]).equal(written(theirs, ids_BT[:, :17]))


def test_without_longrope_nothing_is_said(made: Callable[[str], Path]) -> None:
    assert not told(made("phi3"), "Phi3ForCausalLM")


def test_computed_weights_that_are_rounded(made: Callable[[str], Path], tiny: Path) -> None:
    gemma = made("gemma_bf16")
    assert told(gemma, "embeddings and norms are not copied but computed, and rounded to BF16")
    assert told(gemma, "--dtype f32 does not round, so it computes the same")
    assert not told(gemma, "rounded", dtype="f32")
    assert not told(tiny, "rounded", dtype="f16")  # asked for, and no more than the dtype says
