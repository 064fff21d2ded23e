"""Finds the answers of the assistant in a conversation that a chat template has written.

Templates do not say where a message begins and ends. An answer is found by writing the whole conversation once more
with a marker in its place: what differs is that answer. It begins where the prompt for it ends, so that it is what the
model writes when it is used (with Qwen3 the `<think>` before the last answer, which no prompt has, belongs to it), and
the token that ends the turn belongs to it, but not the line break that follows that.
"""

from collections.abc import Callable
from typing import Any

Span = tuple[int, int]
"""First character and the one after the last."""

Messages = list[dict[str, Any]]

Write = Callable[..., str]
"""(messages, prompt=False) -> text; with `prompt` it ends where the assistant is to answer."""

MARKER = "@@UPCYCLE-MARKER@@"

ANSWER = {"role": "assistant", "content": MARKER}
"""What is put in the place of an answer, of its reasoning and of its calls of tools."""


class NotFoundError(Exception):
    """A template writes a message not at all, twice, or in a way that cannot be told from what is around it."""


class Answers:
    """The answers of one conversation."""

    def __init__(self, write: Write, messages: Messages, tokens: tuple[str, ...], stops: tuple[str, ...]) -> None:
        """Write the conversation; a turn may end in one of the special `tokens`, and does in those that are `stops`."""
        self._write, self.messages, self._tokens, self._stops = write, messages, tokens, stops
        self.text = write(messages)

    def find(self, number: int) -> Span:
        """Return where the answer in message `number` is; raise NotFoundError when the template does not tell."""
        marked = self._try([*self.messages[:number], ANSWER, *self.messages[number + 1 :]])
        if marked is not None and MARKER not in marked and self.messages[number].get("content"):
            raise NotFoundError
        before, _, behind = (marked or "").partition(MARKER)
        if marked is None or MARKER in behind or not self.text.endswith(behind):
            return self._between_prompts(number)
        end = len(self.text) - len(behind)
        return self._start(number, before, end), end + self._turn_end(number, end)

    def _start(self, number: int, before: str, end: int) -> int:
        """Where the prompt for an answer ends, or, where it is written in another way, its own first character."""
        for anchor in self._anchors(number):
            prompt = self._behind(self.messages[:number], anchor, prompt=True)
            whole = self._behind(self.messages, anchor)
            if prompt is not None and whole is not None and whole.startswith(prompt) and self.text.endswith(whole):
                start = len(self.text) - len(whole) + len(prompt)
                if start <= end:
                    return start
        return min(_common(self.text, before), end)

    def _turn_end(self, number: int, end: int) -> int:
        """Characters between an answer and the end of its turn: the end of the token that ends it.

        That is a token at which the model stops, or else one that the template writes behind the answer whether or not
        a message follows. Without such a token it is whatever the template writes there in both cases.
        """
        rest = self.text[end:]
        space = len(rest) - len(rest.lstrip())
        token = max((token for token in self._tokens if rest.startswith(token, space)), key=len, default="")
        if token and token in self._stops:
            return space + len(token)
        always = self._always_behind(number, rest)
        return space + len(token) if token and always >= space + len(token) else min(always, space if token else always)

    def _always_behind(self, number: int, rest: str) -> int:
        """Characters of `rest`, which is behind an answer, that are there too where it is last, or is not."""
        messages = self.messages[: number + 1]
        if number + 1 == len(self.messages):
            messages = [*messages, {"role": "user", "content": "?"}]
        other = self._around(messages, number, ANSWER)
        return _common(rest, other[1]) if other else len(rest)

    def _between_prompts(self, number: int) -> Span:
        """What a conversation that ends with the answer has more than the prompt for it.

        For messages that cannot be replaced by plain text, as calls of tools where the template counts the turns.
        """
        for anchor in self._anchors(number):
            prompt = self._behind(self.messages[:number], anchor, prompt=True)
            until = self._behind(self.messages[: number + 1], anchor)
            whole = self._behind(self.messages, anchor)
            if prompt is None or until is None or whole is None:
                continue
            if until.startswith(prompt) and whole.startswith(until) and self.text.endswith(whole):
                start = len(self.text) - len(whole) + len(prompt)
                return start, start + self._length(until[len(prompt) :])
        raise NotFoundError

    def _length(self, answer: str) -> int:
        """Characters of an answer up to the token that ends the turn; all of them where no special token does."""
        stripped = answer.rstrip()
        return len(stripped) if stripped.endswith(self._tokens) else len(answer)

    def _anchors(self, number: int) -> list[int | None]:
        """The places after which texts are compared: the beginning, and the message before.

        The latter helps where a template writes in another way what lies further back, as the system message.
        """
        return [None, number - 1] if number else []

    def _behind(self, messages: Messages, anchor: int | None, *, prompt: bool = False) -> str | None:
        """The text of a conversation, or what of it lies behind message `anchor`; None where that is not told."""
        if anchor is None:
            return self.text if messages is self.messages else self._try(messages, prompt=prompt)
        marked = {name: item for name, item in messages[anchor].items() if name != "tool_calls"}
        around = self._around(messages, anchor, {**marked, "content": MARKER}, prompt=prompt)
        return around[1] if around else None

    def _around(
        self, messages: Messages, number: int, marked: dict[str, Any], *, prompt: bool = False
    ) -> tuple[str, str] | None:
        """The text before and behind a message; None where the template does not write its marker exactly once."""
        text = self._try([*messages[:number], marked, *messages[number + 1 :]], prompt=prompt)
        before, found, behind = (text or "").partition(MARKER)
        return (before, behind) if found and MARKER not in behind else None

    def _try(self, messages: Messages, *, prompt: bool = False) -> str | None:
        try:
            return self._write(messages, prompt=prompt)
        except Exception:  # of templates, which refuse what they like
            return None


def _common(first: str, second: str) -> int:
    """Characters that two texts have in common at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
