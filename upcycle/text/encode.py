"""Records to token ids, and for which of them the loss asks.

Tokens of a batch of records are made in one call, which fast tokenizers spread over the cores. A document of plain text
gets the first token that the tokenizer itself gives it (BOS, where it has that habit) and always EOS at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upcycle.errors import InputError
from upcycle.text.chat import ChatRenderer, Span
from upcycle.text.records import Chat, Pair, Record, Text


@dataclass(frozen=True, slots=True)
class Document:
    """The T tokens of a record."""

    ids_T: NDArray[np.int32]
    target_T: NDArray[np.bool_]
    """The loss asks for this token, if it is not the first of a sequence."""
    continues: bool = False
    """It is a piece of the document before it."""

    def split(self, count: int) -> tuple["Document", "Document"]:
        """Return the first `count` tokens and the others."""
        rest = Document(self.ids_T[count:], self.target_T[count:], continues=True)
        return Document(self.ids_T[:count], self.target_T[:count], self.continues), rest


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A record as one text; `spans` is what the loss asks for, None everything."""

    text: str
    spans: list[Span] | None = None
    starts: bool = False  # with BOS, where the tokenizer has that habit
    ends: bool = False  # with EOS
    continues: bool = False


class Encoder:
    """A tokenizer at work."""

    def __init__(self, tokenizer: Any) -> None:
        """Raise InputError when the tokenizer has no token that ends a document."""
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no token that ends a document",
                where=tokenizer.name_or_path or None,
                expected="an eos_token",
                hint="set eos_token in tokenizer_config.json",
            )
        self.eos = int(tokenizer.eos_token_id)
        first = tokenizer("a")["input_ids"][:1]
        self.bos = [first[0]] if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else []
        self.chat = ChatRenderer(tokenizer)

    def encode(self, records: Sequence[Record]) -> list[Document]:
        """Return a document for each record, without tokens for an empty text.

        Raises InputError naming the record for a conversation without a chat template, or one that it refuses.
        """
        rendered = [self._render(record) for record in records]
        spans = any(item.spans is not None for item in rendered)
        if spans and not self.tokenizer.is_fast:
            expected = "a fast tokenizer (tokenizer.json), which says where in the text a token lies"
            raise InputError("the answers cannot be told from the prompts", where=records[0].where, expected=expected)
        encoded = self.tokenizer(
            [item.text for item in rendered], add_special_tokens=False, return_attention_mask=False,
            return_offsets_mapping=spans, verbose=False,
        )  # fmt: skip
        offsets = encoded["offset_mapping"] if spans else [[]] * len(rendered)
        return list(map(self._document, rendered, encoded["input_ids"], offsets))

    def _render(self, record: Record) -> _Rendered:
        match record.content:
            case Text(text, starts, ends):
                return _Rendered(text, None, starts and text != "", ends and text != "", not starts)
            case Pair(prompt, completion):
                text = prompt + completion
                return _Rendered(text, [(len(prompt), len(text))], starts=True, ends=True)
            case Chat(messages):
                return _Rendered(*self.chat.render(messages, record.where))

    def _document(self, item: _Rendered, tokens: list[int], offsets: list[Span]) -> Document:
        """Put the tokens at both ends around those of the text."""
        bos, eos = self.bos if item.starts else [], [self.eos] if item.ends else []
        ids_T = np.array([*bos, *tokens, *eos], dtype=np.int32)
        target_T = np.ones(len(ids_T), dtype=np.bool_)
        if item.spans is not None:
            target_T[: len(bos)] = False
            target_T[len(bos) : len(bos) + len(tokens)] = _asked_for(item.spans, offsets)
        return Document(ids_T, target_T, item.continues)


def _asked_for(spans: list[Span], offsets: list[Span]) -> NDArray[np.bool_]:
    """Return which tokens hold a character of a span, by their ends: leading white space may be left out of offsets.

    A token that lies across the beginning of a span holds some; one across its end would hold what follows it too.
    """
    ends_T = np.array(offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
    target_T = np.zeros(len(ends_T), dtype=np.bool_)
    for start, end in spans:
        target_T |= (start < ends_T) & (ends_T <= end)
    return target_T
