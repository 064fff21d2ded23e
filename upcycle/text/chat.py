"""Conversations as one text, and where in it the assistant speaks."""

import re
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from upcycle.errors import InputError

Span = tuple[int, int]
"""First character and the one after the last."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatRenderer:
    """A tokenizer's chat template.

    A template that marks the answers itself ({% generation %}) is taken at its word. With any other, an answer is what
    the conversation up to it has more than the prompt that asks for it, so that it is exactly what the model writes
    when it is used: the text, and the token that ends the turn, but not the line break that follows that.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Take the template of `tokenizer`; one that has none is told only when there is a conversation."""
        self.tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self.marked = self.has_template and bool(_MARKED.search(tokenizer.get_chat_template()))
        tokens = [*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]
        self.ends = tuple(token for token in tokens if token.strip())

    def render(self, messages: list[dict[str, Any]], where: str) -> tuple[str, list[Span]]:
        """Return the text of a conversation and its answers; raise InputError when the template cannot tell them."""
        if not self.has_template:
            hint = (
                "`upcycle convert --chat-template FILE` gives it one; or take a model that has one (-Instruct, -Chat)"
            )
            raise InputError("the tokenizer has no chat template for messages", where=where, hint=hint)
        try:
            return self._marked(messages) if self.marked else self._compared(messages, where)
        except InputError:
            raise
        except Exception as error:  # of templates, which raise what they like, and of jinja
            raise InputError(f"the chat template refuses the conversation ({error})", where=where) from error

    def _marked(self, messages: list[dict[str, Any]]) -> tuple[str, list[Span]]:
        # Not `apply_chat_template(return_assistant_tokens_mask=True)`: where the last character of an answer belongs to
        # no token's offsets (a space, with `trim_offsets`), its mask goes on to the end of the conversation.
        texts, spans = render_jinja_template(
            [messages],
            chat_template=self.tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return texts[0], [(start, end) for start, end in spans[0]]

    def _compared(self, messages: list[dict[str, Any]], where: str) -> tuple[str, list[Span]]:
        whole = self._text(messages)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._text(messages[:number], prompt=True)
                until = self._text(messages[: number + 1]) if number + 1 < len(messages) else whole
                if not (whole.startswith(until) and until.startswith(before)):
                    raise _ambiguous(where, number)
                spans.append((len(before), len(before) + self._length(until[len(before) :])))
        return whole, spans

    def _text(self, messages: list[dict[str, Any]], *, prompt: bool = False) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))

    def _length(self, answer: str) -> int:
        """Characters of an answer up to the token that ends the turn; all of them where no special token does."""
        stripped = answer.rstrip()
        return len(stripped) if stripped.endswith(self.ends) else len(answer)


def _ambiguous(where: str, number: int) -> InputError:
    return InputError(
        f"the chat template does not tell where message {number + 1} begins and ends: it writes the conversation up to "
        "there in another way when more follows",
        where=where,
        hint="a template with {% generation %} says so itself; or split the conversation, so that it has one answer",
    )
