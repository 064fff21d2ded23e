"""Widths that stock transformers cannot run are exactly those at which it stops."""

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from upcycle.families.grouped import grouped_mm_problem, padded_width, row_multiple

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def stops(hidden: int, width: int, dtype: str) -> bool:
    """Whether a forward pass of stock Mixtral, as it is by default, stops at these widths."""
    config = MixtralConfig(
        vocab_size=16, hidden_size=hidden, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    model = MixtralForCausalLM(config).to(TORCH[dtype]).eval()
    try:
        model(input_ids=torch.arange(8)[None])
    except RuntimeError as error:
        return "strides should be multiple of 16 bytes" in str(error)
    return False


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize(("hidden", "width"), [(32, 48), (32, 60), (50, 48), (36, 20), (32, 61)])
def test_the_sentence_is_there_when_transformers_stops(hidden: int, width: int, dtype: str) -> None:
    problem = grouped_mm_problem({"hidden size": hidden, "FFN width": width}, dtype)
    assert (problem is not None) == stops(hidden, width, dtype)


def test_the_sentence_names_what_is_wrong_and_what_helps() -> None:
    # 60 values of 2 bytes are 120 bytes, 7.5 times 16; 48 are 96 bytes, 6 times 16
    assert grouped_mm_problem({"hidden size": 48, "FFN width": 60}, "BF16") == (
        "FFN width 60 in BF16: no multiple of 8, so a row is no multiple of 16 bytes, and transformers stops unless "
        'it is loaded with experts_implementation="eager"'
    )
    both = grouped_mm_problem({"hidden size": 50, "FFN width": 60}, "BF16")
    assert both
    assert both.startswith("hidden size 50 and FFN width 60 in BF16: ")


def test_widths_are_padded_to_the_next_multiple() -> None:
    # 16 bytes are 8 values of 2 bytes, 4 of 4
    assert (row_multiple("BF16"), row_multiple("F16"), row_multiple("F32")) == (8, 8, 4)
    assert [padded_width(width, "BF16") for width in (1, 8, 60, 64)] == [8, 8, 64, 64]
    assert [padded_width(width, "F32") for width in (59, 60)] == [60, 60]
