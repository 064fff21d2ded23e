"""Which adapters can be merged is told when they are attached, and said again by `merge` in the same words."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.any_dense import attach, load, logits, save_model
from tests.drawn_adapters import draw_adapter
from tests.families.models import MODELS
from tests.families.models import save_model as save_pair
from tests.merging import logits_error, run_merge
from upcycle.adapt import merge, proof
from upcycle.adapters.load import attached
from upcycle.errors import InputError, UnsupportedError
from upcycle.families.pairs import pairs_of
from upcycle.pipeline import stages
from upcycle.requests import Attach
from upcycle.requests.merge import Merge

UNMERGEABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "sigmoid routers": ("lfm2", {}, "score by softmax, those of lfm2_moe by sigmoid"),
    "no gate": ("arcee", {}, "the FFN of arcee has no gate, nor have the adapter's experts, and those of mixtral do"),
    "an FFN that stays": ("gemma4_text", {}, "it normalises the FFN's output and the experts' by themselves"),
    "another order of rows": (
        "helium", {"attention_rank": 2}, r"attention's q and k of a helium take another form.*--attention-rank 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", UNMERGEABLE)
def test_told_before_the_training(tmp_path: Path, why: str) -> None:
    model_type, asked, words = UNMERGEABLE[why]
    fields = {"mlp_bias": False} if model_type == "arcee" else {}
    base, out = save_model(model_type, tmp_path / "base", **fields), tmp_path / "adapter"
    done = stages.attach(Attach(model=str(base), out=str(out), experts=(4,), rank=8, **asked))
    (note,) = done.notes
    assert note.startswith("`merge` cannot write this adapter as a plain model: ")
    with pytest.raises(UnsupportedError, match=words) as caught:
        run_merge(out, base, tmp_path / "merged")
    assert note.removeprefix("`merge` cannot write this adapter as a plain model: ") in str(caught.value)


@pytest.mark.parametrize("model_type", ["helium", "granitemoehybrid"])
def test_nothing_is_told_of_what_can_be_merged(tmp_path: Path, model_type: str) -> None:
    base = save_model(model_type, tmp_path / "base")
    done = stages.attach(Attach(model=str(base), out=str(tmp_path / "adapter"), experts=(4,), rank=8))
    assert done.notes == ()


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_adapters_of_a_granite_4_merge(tmp_path: Path, kind: str) -> None:
    base = save_model("granitemoehybrid", tmp_path / "base")
    adapter = attach(base, tmp_path / "adapter", kind)
    path, draw = adapter / "adapter_model.safetensors", torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(value.shape, generator=draw) * 0.3 for name, value in load_file(path).items()}
    save_file(drawn, path, metadata={"format": "pt"})
    changed = attached(load(base), adapter).eval()
    assert (logits(changed) - logits(load(base))).abs().max() > 0.1
    run_merge(adapter, base, tmp_path / "out")
    assert logits_error(changed, tmp_path / "out") <= 1e-5


@pytest.mark.parametrize("model_type", ["lfm2", "granitemoehybrid", "gemma4_text", "qwen3_5_text"])
def test_attention_that_differs_from_layer_to_layer_gets_no_lora(tmp_path: Path, model_type: str) -> None:
    with pytest.raises(InputError, match=f"layers of a {model_type} do not all have the same attention.*rank 2"):
        attach(save_model(model_type, tmp_path / "base"), tmp_path / "out", "lora", attention_rank=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "told"), [("gemma_bf16", ", for embeddings and norms are computed, too, and rounded"), ("qwen2_tied", "")]
)
def test_a_merge_says_what_is_rounded_beside_the_experts(tmp_path: Path, name: str, told: str) -> None:
    base = save_pair(name, MODELS[name], tmp_path / "base")
    adapter = draw_adapter(base, tmp_path / "adapter", "lora")
    draft, _, _ = merge._drafted(adapter, base, Merge(adapter=str(adapter), out=str(tmp_path / "out")))
    assert not draft.plan.exact
    assert proof._folded(draft) == told


def test_the_other_form_is_named_where_there_is_one() -> None:
    with pytest.raises(UnsupportedError, match=r"no compact mixture.*found qwen3,.*--to full writes"):
        pairs_of("qwen3", form="compact")
    with pytest.raises(UnsupportedError, match=r"no compact mixture.*found lfm2") as caught:
        pairs_of("lfm2", form="compact")
    assert "--to full" not in str(caught.value)
