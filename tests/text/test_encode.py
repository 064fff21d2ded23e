"""Records to tokens and targets: documents, completions, and the answers of conversations."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from upcycle.errors import InputError
from upcycle.text import files
from upcycle.text.encode import Document, Encoder
from upcycle.text.records import Chat, Cursor, Pair, Record, Text
from upcycle.text.sources import source_of

TINY = Path(__file__).parents[2] / "upcycle/data/tiny"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4."},
    {"role": "user", "content": "3+3?"},
    {"role": "assistant", "content": "It is\n6. \n"},
]

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
SPACED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
)
BARE = (
    "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ m.role }}: {{ '...' if not loop.last and m.role == 'assistant' else m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture
def templated(tiny: Any) -> Callable[[str], Any]:
    """Return a function: chat template -> the tiny tokenizer with it."""

    def make(template: str) -> Any:
        tokenizer = deepcopy(tiny)
        tokenizer.chat_template = template
        return tokenizer

    return make


def encode(tokenizer: Any, *contents: Text | Pair | Chat) -> list[Document]:
    records = [Record(content, f"a.jsonl:{n}", n, Cursor()) for n, content in enumerate(contents, 1)]
    return Encoder(tokenizer).encode(records)


def target(tokenizer: Any, document: Document) -> list[str]:
    """The runs of targets, as text."""
    edges = np.flatnonzero(np.diff(document.target_T, prepend=False, append=False)).reshape(-1, 2)
    return [tokenizer.decode(document.ids_T[start:stop]) for start, stop in edges]


# -- documents --------------------------------------------------------------------------------------------------------


def test_a_document_ends_with_eos(tiny: Any) -> None:
    document, empty = encode(tiny, Text("In the beginning"), Text(""))
    assert document.ids_T.tolist() == [*tiny("In the beginning")["input_ids"], tiny.eos_token_id]
    assert document.target_T.all()
    assert [document.ids_T.dtype, document.target_T.dtype] == [np.dtype(np.int32), np.dtype(np.bool_)]
    assert len(empty.ids_T) == 0


def test_a_tokenizer_that_puts_tokens_around_a_text(tiny: Any) -> None:
    """BOS as it does by itself, EOS once."""
    tokenizer = deepcopy(tiny)
    plain = tokenizer("In the beginning")["input_ids"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    text, pair, empty = encode(tokenizer, Text("In the beginning"), Pair("In the", " beginning"), Text(""))
    assert len(empty.ids_T) == 0
    assert text.ids_T.tolist() == pair.ids_T.tolist() == [0, *plain, 1]
    assert target(tokenizer, pair) == [" beginning</s>"]


@pytest.mark.parametrize("between", ["\n", " "])
def test_pieces_have_the_tokens_of_the_whole(
    between: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIECE", 120)
    text = between.join((TINY.parent / "sample.txt").read_text().split())
    (tmp_path / "a.txt").write_text(text)
    documents = Encoder(tiny).encode(list(source_of(str(tmp_path / "a.txt")).read(Cursor())))
    assert len(documents) > 10
    assert (
        np.concatenate([document.ids_T for document in documents]).tolist()
        == encode(tiny, Text(text))[0].ids_T.tolist()
    )
    assert [document.continues for document in documents] == [False] + [True] * (len(documents) - 1)


def test_a_tokenizer_without_eos(tiny: Any) -> None:
    tokenizer = deepcopy(tiny)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"no token that ends a document.*set eos_token in tokenizer_config.json"):
        Encoder(tokenizer)


# -- completions ------------------------------------------------------------------------------------------------------


def test_the_loss_asks_for_the_completion(tiny: Any) -> None:
    pairs = [Pair("In the beginning", " God created"), Pair("And God said\n", "\n\nlet there"), Pair("Amen.", "")]
    documents = encode(tiny, *pairs, Text("In the"))
    for pair, document in zip(pairs, documents, strict=False):
        assert tiny.decode(document.ids_T) == pair.prompt + pair.completion + "</s>"
        assert target(tiny, document) == [pair.completion + "</s>"]
    assert documents[3].target_T.all()


def test_a_token_across_the_edge_is_asked_for(tiny: Any) -> None:
    """It is not in the prompt when the model is used, so that the model must write it."""
    assert len(tiny(" the")["input_ids"]) == 1
    assert target(tiny, encode(tiny, Pair("And t", "he"))[0]) == [" the</s>"]


# -- conversations ----------------------------------------------------------------------------------------------------


def test_smollm2(smol: Any) -> None:
    """Its template marks nothing and puts a system message where there is none."""
    long, short = encode(smol, Chat(TALK), Chat(TALK[1:3]))
    assert long.ids_T.tolist() == smol.apply_chat_template(TALK)["input_ids"]
    assert target(smol, long) == ["4.<|im_end|>", "It is\n6. \n<|im_end|>"]
    assert smol.decode(short.ids_T).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert target(smol, short) == ["4.<|im_end|>"]


def test_a_prompt_is_what_the_model_sees_when_it_is_used(smol: Any) -> None:
    document = encode(smol, Chat(TALK[:3]))[0]
    first = int(document.target_T.argmax())
    prompt = smol.apply_chat_template(TALK[:2], add_generation_prompt=True)["input_ids"]
    assert document.ids_T[:first].tolist() == prompt


def test_answers_that_the_template_marks(smol: Any) -> None:
    """As transformers' own mask has them, where that is right."""
    tokenizer = deepcopy(smol)
    tokenizer.chat_template = MARKED
    document = encode(tokenizer, Chat(TALK))[0]
    stock = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    assert document.ids_T.tolist() == stock["input_ids"]
    assert document.target_T.tolist() == [bool(mark) for mark in stock["assistant_masks"]]
    assert target(tokenizer, document) == ["4.<|im_end|>", "It is\n6. \n<|im_end|>"]


def test_an_answer_that_ends_in_white_space(templated: Callable[[str], Any]) -> None:
    """transformers' mask goes on to the end of the conversation: this tokenizer's offsets leave spaces out."""
    tokenizer = templated(SPACED)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    talk = [TALK[1], {"role": "assistant", "content": "Four "}, {"role": "user", "content": "And the sons of Levi"}]
    assert target(tokenizer, encode(tokenizer, Chat(talk))[0]) == ["Four "]
    stock = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    assert stock["assistant_masks"][-1] == 1


def test_a_template_without_a_token_that_ends_turns(templated: Callable[[str], Any]) -> None:
    """Then the blank line is what ends them."""
    tokenizer = templated(BARE)
    assert target(tokenizer, encode(tokenizer, Chat(TALK))[0]) == ["4.\n\n", "It is\n6. \n\n\n"]


def test_conversations_and_texts_in_one_batch(smol: Any) -> None:
    piece = Text("More.", starts=False, ends=False)
    contents: list[Text | Pair | Chat] = [Text("Some text."), Chat(TALK), Pair("a", "b"), piece]
    together = encode(smol, *contents)
    for document, content in zip(together, contents, strict=True):
        alone = encode(smol, content)[0]
        assert document.ids_T.tolist() == alone.ids_T.tolist()
        assert document.target_T.tolist() == alone.target_T.tolist()
    assert [document.continues for document in together] == [False, False, False, True]


def test_no_chat_template(tiny: Any) -> None:
    with pytest.raises(
        InputError, match=r"^a\.jsonl:2: the tokenizer has no chat template for messages; `upcycle convert --chat"
    ):
        encode(tiny, Text("a"), Chat(TALK))


def test_a_template_that_writes_answers_in_two_ways(templated: Callable[[str], Any]) -> None:
    tokenizer = templated(FORGETFUL)
    with pytest.raises(
        InputError, match=r"^a\.jsonl:1: the chat template does not tell where message 3 begins and ends"
    ):
        encode(tokenizer, Chat(TALK))
    assert target(tokenizer, encode(tokenizer, Chat(TALK[:3]))[0]) == ["4.\n"]


def test_a_template_that_refuses(templated: Callable[[str], Any]) -> None:
    tokenizer = templated("{{ raise_exception('no system message, please') }}")
    message = r"^a\.jsonl:1: the chat template refuses the conversation \(no system message, please\)"
    with pytest.raises(InputError, match=message):
        encode(tokenizer, Chat(TALK))


def test_a_template_without_a_prompt_for_the_answer(templated: Callable[[str], Any]) -> None:
    """Then the name of the speaker is a part of the answer, as it is when such a model is used."""
    tokenizer = templated(TURNS)
    assert target(tokenizer, encode(tokenizer, Chat(TALK[:3]))[0])[0].startswith("<|im_start|>assistant\n4.")
