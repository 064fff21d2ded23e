"""What other programs do not compute is said when a conversion is planned; `make interop` measures it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.models import MISTRAL_7B, save_header
from upcycle.cli.main import group
from upcycle.pipeline.stages import plan
from upcycle.requests import Plan

SILU = "llama.cpp, mlx-lm and vLLM compute SiLU whatever hidden_act says"
WINDOW = "llama.cpp and mlx-lm ignore sliding_window: right up to that many tokens"
ROPE = "mlx-lm ignores rope scaling"
HEAD = "mlx-lm refuses a head_dim other than hidden_size / heads"


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("llama", ()), ("llama_tied", ()), ("llama_no_gqa", ()), ("mistral", ()),
        ("llama_gelu", (SILU,)), ("mistral_window", (WINDOW,)), ("llama_llama3_rope", (ROPE,)), ("llama_yarn", (ROPE,)),
        ("llama_odd_head", (HEAD,)),
    ],
)  # fmt: skip
def test_what_readers_leave_out(dense: Callable[[str], Path], variant: str, expected: tuple[str, ...]) -> None:
    account = plan(Plan(model=str(dense(variant)))).account
    assert account.reader_limits == expected
    assert account.as_json()["reader_limits"] == list(expected)


def test_it_is_printed(tmp_path: Path) -> None:
    """Mistral 7B v0.1: a window of 4,096 in 32,768 positions."""
    printed = CliRunner().invoke(group, ["plan", str(save_header(MISTRAL_7B, tmp_path))]).output
    assert printed.splitlines()[-1] == f"readers       {WINDOW}"
