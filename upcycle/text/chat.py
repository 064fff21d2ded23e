"""Writes conversations as text, by the chat template of a tokenizer, and tells where in it the assistant answers."""

import re
from collections.abc import Callable, Iterable
from datetime import date
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from upcycle.errors import InputError
from upcycle.text.answers import Answers, Messages, NotFoundError, Span
from upcycle.text.records import Chat

TODAY = date(2024, 7, 26)
"""The day that templates are told it is: of every day the same, so that a run that is resumed reads the same text.

It is the day that Llama 3.1's template writes where nobody tells it another.
"""

_BLANKS: tuple[dict[str, Any], ...] = ({}, {"content": None}, {"content": ""})
"""What a message without content may have in its place."""

_REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields beside the content in which data sets keep what a model thinks before it answers."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_DATES = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class ChatRenderer:
    """A tokenizer's chat template at work.

    The answers are found by `upcycle.text.answers`; where a template marks them itself ({% generation %}), only what
    is within its marks counts.
    """

    def __init__(self, tokenizer: Any, say: Callable[[str], None], stops: Iterable[int] = ()) -> None:
        """Take the template of `tokenizer`; that it has none is an error only when there is a conversation.

        `say` is told what people should know of the template, and repeats nothing. The model stops at `stops`.
        """
        self.tokenizer, self.say = tokenizer, say
        self.has_template = bool(tokenizer.chat_template)
        tokens = [*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]
        self.tokens = tuple({token: None for token in tokens if token.strip()})
        self.stops = tuple(token for token in tokenizer.convert_ids_to_tokens(sorted(stops)) if token in self.tokens)
        self._templates: dict[bool, str] = {}

    def render(self, chat: Chat, where: str) -> tuple[str, list[Span]]:
        """Return the text of a conversation and its answers; raise InputError when the template cannot tell them."""
        if not self.has_template:
            hint = (
                "`upcycle convert --chat-template FILE` gives it one; or take a model that has one (-Instruct, -Chat)"
            )
            raise InputError("the tokenizer has no chat template for messages", where=where, hint=hint)
        template = self._template(bool(chat.tools))

        try:
            answers = self._answers(chat, template)
            marks = self._marks(answers.messages, chat, template) if _MARKED.search(template) else None
        except Exception as error:  # of templates, which raise what they like, and of jinja
            raise InputError(f"the chat template refuses the conversation ({error})", where=where) from error
        self._tell_what_is_missing(chat, answers.text)
        return answers.text, _spans(answers, chat, marks, where)

    def _answers(self, chat: Chat, template: str) -> Answers:
        """The conversation, written; raises what the template raises.

        Of a call of a tool some templates want no content, some null, some an empty text.
        """

        def write(messages: Messages, *, prompt: bool = False) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tools=chat.tools, chat_template=template, tokenize=False, add_generation_prompt=prompt
                )
            )

        whole = all("content" in message for message in chat.messages)
        refusals: list[Exception] = []
        for blank in _BLANKS[:1] if whole else _BLANKS:
            try:
                return Answers(write, [{**blank, **one} for one in chat.messages], self.tokens, self.stops)
            except Exception as error:
                refusals.append(error)
        raise refusals[0]

    def _template(self, tools: bool) -> str:
        """The template for conversations with or without tools, which writes `TODAY` for today."""
        if tools not in self._templates:
            template = str(self.tokenizer.get_chat_template(tools=[{}] if tools else None))
            self._templates[tools] = self._dated(template)
        return self._templates[tools]

    def _dated(self, template: str) -> str:
        """A template in which `strftime_now`, which transformers gives it, is a macro that knows one day only."""
        formats = {found[2] for found in _DATES.finditer(template)}
        if not formats:
            return template
        self.say(
            f"the chat template writes the date: it is told that today is {TODAY}, so that a run that is resumed on "
            "another day reads the same text"
        )
        days = {form: TODAY.strftime(form) for form in sorted(formats)}
        return f"{{% macro strftime_now(form) %}}{{{{ {days!r}[form] }}}}{{% endmacro %}}{{{{ '' }}}}{template}"

    def _marks(self, messages: Messages, chat: Chat, template: str) -> list[Span]:
        """What the template marks as answers.

        Not `apply_chat_template(return_assistant_tokens_mask=True)`: where the last character of an answer belongs to
        no token's offsets (a space, with `trim_offsets`), its mask goes on to the end of the conversation.
        """
        _, spans = render_jinja_template(
            [messages],
            tools=chat.tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return [(start, end) for start, end in spans[0]]

    def _tell_what_is_missing(self, chat: Chat, text: str) -> None:
        """Say when the template leaves out what people think they train on."""
        if any(message["role"] == "system" and not _is_in(message, text) for message in chat.messages[:-1]):
            self.say("the chat template leaves the system message out of conversations that are answered")
        answers = [one for number, one in enumerate(chat.messages)
                   if one["role"] == "assistant" and number not in chat.skipped]  # fmt: skip
        if any("</think>" in (one.get("content") or "") and not _is_in(one, text) for one in answers):
            self.say("the chat template leaves the reasoning before </think> out of answers")
        if any(not _is_in({"content": one[name]}, text) for one in answers for name in _REASONING if one.get(name)):
            self.say("the chat template leaves the reasoning in a field beside the content out of answers")
        if any(one.get("tool_calls") and one.get("content") and not _is_in(one, text) for one in answers):
            self.say("the chat template leaves the text beside calls of tools out of answers")
        if not all(_name_of(tool) in text for tool in chat.tools or ()):
            self.say("the chat template leaves the tools out")


def _spans(answers: Answers, chat: Chat, marks: list[Span] | None, where: str) -> list[Span]:
    """Where the answers are that the loss asks for; with `marks`, what of them the template has marked."""
    spans: list[Span] = []
    for number, message in enumerate(chat.messages):
        if message["role"] != "assistant" or number in chat.skipped:
            continue
        try:
            span = answers.find(number)
        except NotFoundError:
            if marks and not chat.skipped:
                return marks
            raise _ambiguous(where, number) from None
        _check_calls(message, answers.text[slice(*span)], f"{where}: message {number + 1}")
        spans += [span] if marks is None else [both for mark in marks if (both := _overlap(span, mark))]
    return spans


def _check_calls(message: dict[str, Any], answer: str, where: str) -> None:
    """Raise InputError for calls of tools that the template does not write: an answer of nothing would be trained."""
    lost = [name for call in message.get("tool_calls") or () if (name := _name_of(call)) not in answer]
    if lost:
        raise InputError(
            "the chat template leaves calls of tools out of answers", where=where, found=f"a call of {lost[0]}",
            hint="`upcycle convert --chat-template FILE` takes a template that writes them",
        )  # fmt: skip


def _overlap(first: Span, second: Span) -> Span | None:
    start, end = max(first[0], second[0]), min(first[1], second[1])
    return (start, end) if start < end else None


def _is_in(message: dict[str, Any], text: str) -> bool:
    """Whether a template has written all of a message, whatever it did to white space."""
    return "".join(message["content"].split()) in "".join(text.split())


def _name_of(tool: dict[str, Any]) -> str:
    function = tool.get("function", tool)
    return str(function.get("name", "")) if isinstance(function, dict) else ""


def _ambiguous(where: str, number: int) -> InputError:
    return InputError(
        f"the chat template does not tell where message {number + 1} begins and ends: it leaves it out, or writes what "
        "is around it in another way when the message changes",
        where=where,
        hint="a template with {% generation %} says so itself; or split the conversation, so that it has one answer",
    )
