"""Turns records into token ids, and says for which of them the loss asks.

Tokens of a batch of records are made in one call, which fast tokenizers spread over the cores. A document of plain text
gets the first token that the tokenizer itself gives it (BOS, where it has that habit) and EOS at the end, unless a
template has written them into the text before.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upcycle.errors import InputError
from upcycle.text.answers import Span
from upcycle.text.chat import ChatRenderer
from upcycle.text.records import Chat, Pair, Record, Text

_log = logging.getLogger("upcycle")


@dataclass(frozen=True, slots=True)
class Document:
    """The T tokens of a record."""

    ids_T: NDArray[np.int32]
    target_T: NDArray[np.bool_]
    """Whether a token is in the loss; the first of a sequence never is."""
    continues: bool = False
    """Whether it continues the document before it, of which it is a piece."""

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
    end: int | None = None  # the token that is put behind the text, and is in the loss
    continues: bool = False


class Encoder:
    """Turns records into tokens; what there is to say of the data it says once."""

    def __init__(
        self, tokenizer: Any, *, stops: Collection[int] | None = None, eos: str | None = None, quiet: bool = False
    ) -> None:
        """Raise InputError when the tokenizer has no token that ends a document, or `eos` is none of its tokens.

        `stops` are the tokens at which the model stops when it is used; EOS if not given. `eos` is the token that ends
        answers which end in none of these. `quiet` processes say nothing.
        """
        self.tokenizer, self.quiet = tokenizer, quiet
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no token that ends a document",
                where=tokenizer.name_or_path or None,
                expected="an eos_token",
                hint="set eos_token in tokenizer_config.json",
            )
        self.eos = int(tokenizer.eos_token_id)
        self.answer_end = None if eos is None else token_id(tokenizer, eos)
        self.stops = {self.eos} if stops is None else set(stops)
        if self.answer_end is not None:
            self.stops.add(self.answer_end)
        first = tokenizer("a")["input_ids"][:1]
        self.bos = [first[0]] if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else []
        self._said: set[str] = set()
        self.chat = ChatRenderer(tokenizer, self._say, self.stops)
        self._end_texts = (tokenizer.eos_token, *self.chat.stops)

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

    def _say(self, text: str) -> None:
        if text not in self._said and not self.quiet:
            self._said.add(text)
            _log.warning("%s", text)

    def _render(self, record: Record) -> _Rendered:
        match record.content:
            case Text(text, starts, ends):
                end = self.eos if ends and text != "" and not self._is_ended(text) else None
                return _Rendered(text, None, starts and text != "" and not self._is_begun(text), end, not starts)
            case Pair(prompt, completion):
                return self._pair(prompt, completion)
            case Chat() as chat:
                return self._conversation(chat, record.where)

    def _pair(self, prompt: str, completion: str) -> _Rendered:
        text = prompt + completion
        starts = not self._is_begun(text)
        if completion and self._is_ended(completion):
            return _Rendered(text, [(len(prompt), len(text.rstrip()))], starts)
        end = self.eos if self.answer_end is None else self.answer_end
        return _Rendered(text, [(len(prompt), len(text))], starts, end)

    def _conversation(self, chat: Chat, where: str) -> _Rendered:
        """A conversation; where `--eos` is given and the last answer ends in no token that stops, it ends in that."""
        text, spans = self.chat.render(chat, where)
        last = len(chat.messages) - 1
        answered = chat.messages[last]["role"] == "assistant" and last not in chat.skipped
        if self.answer_end is None or not spans or not answered or text[: spans[-1][1]].endswith(self._end_texts):
            return _Rendered(text, spans)
        return _Rendered(text, [*spans[:-1], (spans[-1][0], len(text))], end=self.answer_end)

    def _is_begun(self, text: str) -> bool:
        """Whether a text has BOS in front already."""
        begun = bool(self.bos) and text.startswith(self.tokenizer.bos_token)
        if begun:
            self._say(
                f"texts begin with {self.tokenizer.bos_token} already, as a template writes it: no other is added"
            )
        return begun

    def _is_ended(self, text: str) -> bool:
        """Whether a text has a token at its end already at which the model stops."""
        ended = text.rstrip().endswith(self._end_texts)
        if ended:
            self._say("texts end in a token already that stops the model, as a template writes it: no EOS is added")
        return ended

    def _document(self, item: _Rendered, tokens: list[int], offsets: list[Span]) -> Document:
        """Put the tokens at both ends around those of the text."""
        bos, end = self.bos if item.starts else [], [] if item.end is None else [item.end]
        ids_T = np.array([*bos, *tokens, *end], dtype=np.int32)
        target_T = np.ones(len(ids_T), dtype=np.bool_)
        if item.spans is not None:
            target_T[: len(bos)] = False
            target_T[len(bos) : len(bos) + len(tokens)] = _asked_for(item.spans, offsets)
            self._check_stop(ids_T[target_T])
        return Document(ids_T, target_T, item.continues)

    def _check_stop(self, answered_T: NDArray[np.int32]) -> None:
        """Say it, where there is no --eos, when the last answer ends in a token at which the model will not stop."""
        if self.answer_end is not None or not len(answered_T) or int(answered_T[-1]) in self.stops:
            return
        last = self.tokenizer.convert_ids_to_tokens(int(answered_T[-1]))
        found, wanted = (last, last) if last in self.chat.tokens else ("no special token", self.tokenizer.eos_token)
        stops = ", ".join(self.tokenizer.convert_ids_to_tokens(sorted(self.stops))) or "nothing"
        self._say(
            f"answers end in {found}, but the model stops at {stops} (eos_token_id in generation_config.json): trained "
            f"on them it would write on behind its answers; --eos '{wanted}' mends that"
        )


def token_id(tokenizer: Any, token: str) -> int:
    """Return the number of a token; raise InputError when the tokenizer has none of that name."""
    number = tokenizer.get_vocab().get(token)
    if number is None:
        raise InputError(
            "is no token of the tokenizer", where=f"--eos {token}",
            expected="such as " + ", ".join(tokenizer.all_special_tokens[:4]),
        )  # fmt: skip
    return int(number)


def _asked_for(spans: list[Span], offsets: list[Span]) -> NDArray[np.bool_]:
    """Return which tokens hold a character of a span, by their ends: leading white space may be left out of offsets.

    A token that lies across the beginning of a span holds some; one across its end would hold what follows it too.
    """
    ends_T = np.array(offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
    target_T = np.zeros(len(ends_T), dtype=np.bool_)
    for start, end in spans:
        target_T |= (start < ends_T) & (ends_T <= end)
    return target_T
