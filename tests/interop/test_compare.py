"""The comparisons of `make interop` fail when they should."""

import math

import numpy as np
import pytest

from tests.interop.compare import NEAR_TIE, check, log_probabilities, relative_error, tokens, top1
from tests.interop.environment import Environment, ReaderError

LOGITS = np.array([[0.0, 2.0, 1.0], [5.0, 5.0 - NEAR_TIE / 2, 1.0]], dtype=np.float32)


def test_relative_error_is_of_the_largest_value() -> None:
    assert relative_error(LOGITS + 0.5, LOGITS) == pytest.approx(0.1)  # 0.5 of 5
    assert relative_error(LOGITS, LOGITS) == 0


@pytest.mark.parametrize("theirs", [LOGITS * math.nan, LOGITS[:1], LOGITS + math.inf])
def test_nonsense_is_infinitely_wrong(theirs: np.ndarray) -> None:
    assert relative_error(theirs, LOGITS) == math.inf


def test_only_near_ties_may_differ() -> None:
    assert top1(np.array([1, 0]), LOGITS) == ("top-1 2 of 2", True)
    assert top1(np.array([1, 1]), LOGITS)[1] is True  # 5 and 4.9995
    assert top1(np.array([2, 0]), LOGITS)[1] is False  # 2 and 1
    assert top1(np.array([1]), LOGITS)[1] is False


def test_greedy_tokens_part_only_at_a_near_tie() -> None:
    assert tokens([7, 8], [7, 8], [1.0, 1.0]) == ("2 of 2 tokens", True)
    assert tokens([7, 9], [7, 8], [1.0, 1e-4])[1] is True
    assert tokens([7, 9], [7, 8], [1e-4, 1.0])[1] is False
    assert tokens([7], [7, 8], [1.0, 1.0])[1] is False
    assert tokens([7, 8, 9], [7, 8], [1.0, 1.0])[1] is False


def test_probabilities_sum_to_one() -> None:
    assert np.exp(log_probabilities(LOGITS * 1000)).sum(-1) == pytest.approx([1.0, 1.0])


def test_a_limit_is_no_failure_but_is_told() -> None:
    assert check("m", "logits", "0.5", good=False, limit="no window").verdict == "limit"
    assert check("m", "logits", "0.5", good=False).passed is False
    assert check("m", "logits", "0", good=True, limit="no window").verdict == "ok"


def test_a_reader_that_does_not_install_is_not_run(tmp_path) -> None:
    environment = Environment("none", tmp_path)
    environment.requirements = tmp_path / "none.txt"
    environment.requirements.write_text("--no-index\nno-such-reader==1\n")
    with pytest.raises(ReaderError, match="no-such-reader"):
        environment.prepare()
    assert not (environment.directory / "requirements.txt").exists(), "it must be tried again"
