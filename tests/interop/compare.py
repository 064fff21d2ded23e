"""What a reader computed, held against the reference: figures and verdicts.

Shapes: T positions, V vocabulary, K likeliest tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

NEAR_TIE = 1e-3
"""Logits closer than this may change places between two programs that add in another order."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    model: str
    what: str
    figure: str
    verdict: str  # ok, FAIL, or limit: the reader is known not to compute this

    @property
    def passed(self) -> bool:
        """Whether the run may end well."""
        return self.verdict != "FAIL"


def check(model: str, what: str, figure: str, good: bool, limit: str = "") -> Check:
    """Make a check; `limit` says why this reader cannot be right about this model."""
    if limit:
        return Check(model, what, f"{figure}; {limit}", "ok" if good else "limit")
    return Check(model, what, figure, "ok" if good else "FAIL")


def relative_error(theirs: Array, ours: Array) -> float:
    """Return the largest difference over the largest reference value; infinite for another shape or for NaN."""
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        return float("inf")
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())


def top1(theirs_T: Array, ours_TV: Array) -> tuple[str, bool]:
    """Compare the likeliest tokens `(T,)` with reference logits `(T, V)`; only near-ties may differ."""
    if theirs_T.shape != ours_TV.shape[:1]:
        return f"{len(theirs_T)} positions of {len(ours_TV)}", False
    places = np.flatnonzero(theirs_T != ours_TV.argmax(-1))
    ours = ours_TV.max(-1)[places] - ours_TV[places, theirs_T[places]]
    figure = f"top-1 {len(ours_TV) - len(places)} of {len(ours_TV)}"
    ties = "" if not len(places) else f", margin where they differ at most {ours.max():.1e}"
    return figure + ties, bool((ours <= NEAR_TIE).all())


def tokens(theirs: Sequence[int], ours: Sequence[int], margins: Sequence[float]) -> tuple[str, bool]:
    """Compare greedy tokens; `margins` are the reference's, likeliest over second, at each of its tokens."""
    if list(theirs) == list(ours):
        return f"{len(ours)} of {len(ours)} tokens", True
    pairs = zip(theirs, ours, strict=False)
    place = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(theirs), len(ours)))
    margin = margins[place] if place < len(margins) else float("inf")
    return f"{place} of {len(ours)} tokens, margin there {margin:.1e}", margin <= NEAR_TIE


def log_probabilities(logits_TV: Array) -> Array:
    """Return the logarithm of the softmax `(T, V)`, in float64."""
    shifted = logits_TV.astype(np.float64) - logits_TV.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
