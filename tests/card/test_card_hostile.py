"""Model cards of files that mean ill, or are broken: what they hold is text, or nothing."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cards import BASE, BASE_CARD, EVERY, REVISION, Makes, block_of, data_of, fences, made_once, told
from upcycle.card import BEGIN, END, facts_of, markdown
from upcycle.card.markdown import code, count, figure, flow, listed, loss, plain, written
from upcycle.pipeline.steps import read_recipe


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Makes:
    return made_once(tmp_path_factory.getbasetemp(), text)


def inherited(base_card: str, made: Makes, **fields: Any) -> dict[str, Any]:
    data = data_of(told(replace(facts_of(made("moe"), base_card=base_card), **fields))).to_dict()
    return {name: data[name] for name in ("license", "license_name", "license_link", "language") if name in data}


def test_license_and_languages_are_inherited(made: Makes) -> None:
    assert inherited(BASE_CARD, made) == {"license": "apache-2.0", "language": ["en", "no"]}
    special = "---\nlicense: other\nlicense_name: my license-1.0\nlicense_link: LICENSE\nlanguage: no\n---\n"
    link = f"https://huggingface.co/{BASE}/blob/{REVISION}/LICENSE"
    expected = {"license": "other", "license_name": "my license-1.0", "license_link": link, "language": ["no"]}
    assert inherited(special, made) == expected
    assert inherited(special.replace("\n", "\r\n"), made) == expected
    assert inherited(special, made, files=frozenset({"LICENSE"})) == {**expected, "license_link": "LICENSE"}
    assert inherited(special, made, base=None) == {k: v for k, v in expected.items() if k != "license_link"}


@pytest.mark.parametrize(
    "front",
    [
        "license: [", "- a", "just text", "license: {a: b}", "license: 'mit\n\ntags: x'", "license: MIT<script>",
        "? [a, b]\n: c", "license: !!python/object/apply:os.system ['true']\n x", "&a [*a]", "license: \x07mit",
        "license: mit\n" + "a: " * 300_000, "a: " + "[" * 5000, "license: &a [*a, *a]", "license:\n- 'm\"it: x'",
        "license_link: https://evil.example", "language: [1e400, {}, '<b>', 'e\"n']",
    ],
)  # fmt: skip
def test_a_broken_card_of_the_base_says_nothing(front: str, made: Makes) -> None:
    assert inherited(f"---\n{front}\n---\n", made) == {}


def test_aliases_do_not_multiply(made: Makes) -> None:
    lines = ["a0: &a0 [en]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 20)}]" for n in range(1, 30))]
    front = "\n".join([*lines, "license: mit", "language: *a29"])
    assert inherited(f"---\n{front}\n---\n", made) == {"license": "mit"}


def test_data_sets_of_the_hub_are_named_and_files_are_not(made: Makes) -> None:
    facts = facts_of(made("trained"))
    data = ["org/set:config:train", "book.txt", "dir", "org/other", "a/b.jsonl", "/home/me/x", "../x", "<b>/x", 7]
    *before, last = facts.lineage
    changed = {**last, "recipe": {**last["recipe"], "data": data}}
    text = told(replace(facts, lineage=(*before, changed)))
    assert data_of(text).datasets == ["org/other", "org/set"]
    assert "book.txt" in block_of(text)


HOSTILE = (
    f"{END} <script>alert(1)</script>\n---\nlicense: evil\n---\n| a | b |\n```\n# x [l](https://evil.example) ![i](x)"
    f' **b** `c` $d$ www.evil.example \u202e\x1b[31m "q" {{}} {BEGIN}'
)


def poisoned(value: Any) -> Any:
    """The same JSON with every text but what decides its kind hostile."""
    if isinstance(value, Mapping):
        return {name: item if name in ("made", "peft_type") else poisoned(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [poisoned(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("kind", EVERY)
def test_hostile_texts_stay_texts(kind: str, made: Makes) -> None:
    facts = facts_of(made(kind), base_card=BASE_CARD)
    poisoned_lineage = tuple(poisoned(entry) for entry in facts.lineage)
    facts = replace(facts, config=poisoned(facts.config), lineage=poisoned_lineage, name=HOSTILE)
    text = told(facts)
    block = block_of(text)
    for fence in re.findall(r"^```.*?^```$", block, re.MULTILINE | re.DOTALL):
        assert "<" not in fence
        assert "alert" not in fence or fence.startswith("```yaml\n")
    prose = re.sub(r"^```\w*\n.*?^```$", "", block, flags=re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"<[^ ]*", prose)) == {"<!--"}
    assert prose.count("<") == 2
    targets = set(re.findall(r"\]\(([^)]*)\)", prose))
    assert all(target.startswith(("https://arxiv.org/", "https://huggingface.co/someone/")) for target in targets)
    for rows in re.findall(r"(?:^\|.*\n)+", prose, re.MULTILINE):
        assert len({row.count("|") for row in rows.splitlines()}) == 1
    assert all(character.isprintable() or character == "\n" for character in text)
    assert data_of(text).license == "apache-2.0"
    assert told(facts, text) == text


@pytest.mark.parametrize("nonsense", [None, -1, 10**40, 1e300, [], {}, "x", True, [[[]]], {"a": {"b": 1}}])
@pytest.mark.parametrize("kind", ["trained", "tuned-bottleneck", "noisy"])
def test_values_of_the_wrong_kind_are_left_out(kind: str, nonsense: Any, made: Makes) -> None:
    facts = facts_of(made(kind))

    def spoilt(entry: Mapping[str, Any]) -> dict[str, Any]:
        inner = {
            name: dict.fromkeys(value, nonsense) if isinstance(value, dict) else nonsense
            for name, value in entry.items()
        }
        return {**inner, "made": entry["made"]}

    config = {**dict.fromkeys(facts.config, nonsense), "peft_type": facts.config.get("peft_type")}
    text = told(replace(facts, config=config, lineage=tuple(map(spoilt, facts.lineage)), base_card=BASE_CARD))
    assert data_of(text).pipeline_tag == "text-generation"
    assert block_of(text)


def test_plain_text_is_legible() -> None:
    assert plain("SmolLM2-135M_Instruct (v1.0)") == "SmolLM2-135M_Instruct (v1.0)"
    assert plain("_a_ *b*") == "&#95;a&#95; &#42;b&#42;"
    assert plain("https://x.y") == "https&#58;//x.y"
    assert plain("a\n\tb\u202e") == "a b"
    assert plain("x" * 300) == "x" * 197 + "..."


def test_the_template_escapes_what_no_filter_has_written() -> None:
    assert written("*b* | <i>") == "&#42;b&#42; &#124; &#60;i&#62;"
    assert written(plain("*b*")) == "&#42;b&#42;"  # once
    values: list[object] = [1.5, 7, None, [], {}]
    assert [written(value) for value in values] == ["1.5", "7", "", "", ""]


def test_filters_give_values_of_their_kind_and_nothing_else() -> None:
    assert [count(value) for value in (1234567, 0, -1, 1.0, "1", True, None)] == ["1,234,567", "0", *[None] * 5]
    assert [figure(value, ".2e") for value in (0.00123, 4, 1e300, float("nan"), "x")] == [
        "1.23e-03", "4.00e+00", None, None, None,
    ]  # fmt: skip
    assert (count(512, " tokens"), figure(0.5, "g", " for routers")) == ("512 tokens", "0.5 for routers")
    assert loss(3.0) == "3.0000 (perplexity 20.086)"  # e^3 = 20.0855
    assert (loss(1234.5), loss([])) == ("1234", None)
    assert [markdown.text(value) for value in ("a|b", 3, None)] == ["a&#124;b", None, None]
    assert code("org/a_-.b@c`|<\n*") == "org/a_-.b@c_____"
    assert [listed(map(plain, "abcd"[:n])) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert listed([plain("a"), None, plain("b"), plain("c")], 1) == "a and 2 more"
    assert flow("  A\n of\n\n two\n, or\n three\n.\n") == "A of two, or three."


def test_texts_of_a_recipe_stay_texts(made: Makes, tmp_path: Path) -> None:
    facts = facts_of(made("twice"))
    names = [HOSTILE, "1e5", "no", "- x", "```", "<!-- a", "a: b", "\ttab", "#c", "0x1F", "\u4e2d\u6587", "x\u2028y"]

    def changed(entry: Mapping[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = {
            "training": {"data": names, "text_field": "12:30"},
            "conversion": {"chat_template": HOSTILE},
        }
        return {**entry, "recipe": {**entry.get("recipe", {}), **options.get(entry["made"], {})}}

    text = told(replace(facts, lineage=tuple(map(changed, facts.lineage))))
    (written,) = fences(block_of(text), "yaml")
    (tmp_path / "recipe.yaml").write_text(written, encoding="utf-8")
    steps = read_recipe(tmp_path / "recipe.yaml").steps
    assert steps[2].data[1:] == (
        "1e5",
        "no",
        "- x",
        "```",
        "_!-- a",
        "a: b",
        "tab",
        "#c",
        "0x1F",
        "\u4e2d\u6587",
        "x y",
    )
    assert steps[2].data[0].startswith("_!-- upcycle:end --_ _script_")
    assert steps[2].text_field == "12:30"
    assert "<" not in written
    assert "\n```" not in written
