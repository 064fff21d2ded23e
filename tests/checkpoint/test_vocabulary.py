"""The number of tokens that a tokenizer has is what transformers finds, without transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from upcycle.checkpoint.vocabulary import token_count

BUILT_IN = Path(__file__).parents[2] / "upcycle/data/tiny"


def highest(directory: Path) -> int:
    """What transformers has: the highest id plus one."""
    return int(max(AutoTokenizer.from_pretrained(directory).get_vocab().values())) + 1


@pytest.mark.parametrize(
    "model",
    [
        models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]),
        models.WordLevel({"a": 0, "b": 7}, unk_token="a"),
        models.Unigram([("a", -1.0), ("b", -2.0), ("c", -3.0), ("d", -4.0)], unk_id=0),
    ],
    ids=["BPE", "a gap in the ids", "Unigram"],
)
def test_tokenizers_of_every_kind(model: Any, tmp_path: Path) -> None:
    # 3 tokens; ids 0 and 7, for which 8 rows are needed; 4 tokens. Then one more.
    plain = {"BPE": 3, "WordLevel": 8, "Unigram": 4}[type(model).__name__]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    tokenizer.save_pretrained(tmp_path)
    assert token_count(tmp_path) == highest(tmp_path) == plain
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path)
    assert token_count(tmp_path) == highest(tmp_path) >= plain


def test_the_built_in_tokenizer() -> None:
    assert token_count(BUILT_IN) == highest(BUILT_IN)


@pytest.mark.slow
def test_smollm2(smollm2: Path) -> None:
    assert token_count(smollm2) == highest(smollm2) == 49152


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"added_tokens.json": {"<pad>": 32000}}, 32001),  # beside a SentencePiece file
        ({"tokenizer_config.json": {"added_tokens_decoder": {"0": {}, "31": {"content": "x"}}}}, 32),
        ({"vocab.json": {"a": 0, "b": 1}, "added_tokens.json": {"c": 2}}, 3),
        ({"vocab.json": {"a": 99}, "tokenizer.json": {"model": {"vocab": {"a": 4}}}}, 5),
        ({"tokenizer.json": {"model": {"vocab": {}}, "added_tokens": []}}, None),
        ({}, None),
    ],
)
def test_where_the_ids_stand(files: dict[str, Any], count: int | None, tmp_path: Path) -> None:
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    assert token_count(tmp_path) == count


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"model": 3}', '{"model": {"vocab": 3}}', '{"model": {"vocab": {"a": "b", "c": -1}}}',
        '{"added_tokens": [3, {"id": null}, {"id": true}, {"id": 1e3}]}', '{"a": 1, "a": 2}',
        '{"model": {"vocab": {"a": 1000000000000000000000}}}',
    ],
)  # fmt: skip
def test_what_is_damaged_says_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"x": {}, "-1": {}, "\u0663": {}}}')
    assert token_count(tmp_path) is None
