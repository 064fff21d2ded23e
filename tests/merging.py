"""Merging in tests."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from upcycle.adapt import merge, proof
from upcycle.plan.report import Report
from upcycle.requests.merge import Merge


def run_merge(adapter: Path, base: Path, out: Path, *, proven: bool = False, **fields: Any) -> merge.Merged:
    """Merge; the proof, which starts a process that imports transformers, only where it is what is tested."""
    request = Merge(adapter=str(adapter), out=str(out), **fields)
    kept = proof.prove
    try:
        if not proven:
            proof.prove = lambda *_: Report()
        return merge.merge(adapter, base, request, lambda _: lambda _: None)
    finally:
        proof.prove = kept


@torch.no_grad()
def logits_error(expected: Any, out: Path) -> float:
    """Return the largest difference to a model's logits of what plain transformers loads, over their largest."""
    found, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.randint(expected.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    ours = expected.eval()(ids).logits
    return float((found.eval()(ids).logits - ours).abs().max() / ours.abs().max())
