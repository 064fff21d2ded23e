"""Model cards that somebody has edited: what is theirs stays, byte for byte."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.cards import BASE, BASE_CARD, Makes, block_of, data_of, made_once, told
from tests.conftest import edit_json
from upcycle.card import BEGIN, END, card, facts_of, missing, outside
from upcycle.errors import InputError


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Makes:
    return made_once(tmp_path_factory.getbasetemp(), text)


def test_only_the_block_of_an_edited_card_is_written(made: Makes) -> None:
    facts = facts_of(made("trained"))
    start = "\ufeff---\r\nlicense: my-own   # a comment\r\nzebra: [ 1 ]\r\n---\r\n\r\n# My words\r\n"
    before = f"{start}{BEGIN}\r\nold\r\n{END} and after\rthe end, without a line break \u00e9"
    text = told(facts, before)
    head, rest = start.split("\r\n---\r\n\r\n")
    assert text.startswith(f"{head}\r\nlibrary_name: transformers\r\npipeline_tag: text-generation\r\nbase_model: ")
    assert f"\r\n---\r\n\r\n{rest}{BEGIN}" in text
    assert text.endswith(f"{END} and after\rthe end, without a line break \u00e9")
    assert "old" not in text
    assert "\n" not in block_of(text).replace("\r\n", "")
    assert block_of(text).replace("\r\n", "\n") == block_of(told(facts))
    assert told(facts, text) == text


def test_a_card_without_a_block_gets_one_at_its_end(made: Makes) -> None:
    facts = facts_of(made("moe"), base_card=BASE_CARD)
    before = "---\nzebra: 1 # kept\ntags:\n- mine\nlicense: mit\n---\n# Mine\n\nWords"
    text = told(facts, before)
    assert text.startswith(
        "---\nzebra: 1 # kept\ntags:\n- mine\nlicense: mit\nlanguage:\n- en\n- 'no'\nlibrary_name: tr"
    )
    assert f"\n---\n# Mine\n\nWords\n\n{BEGIN}\n" in text
    data = data_of(text)
    assert (data.license, data.tags, data.base_model) == ("mit", ["mine"], BASE)
    assert told(facts, text) == text


@pytest.mark.parametrize("before", ["# Mine\n", "\ufeff# Mine\r\n\r\n", "---\n---\n# Mine", "---\n\n---\n# Mine\n"])
def test_a_card_without_metadata_gets_some(before: str, made: Makes) -> None:
    text = told(facts_of(made("moe"), base_card=BASE_CARD), before)
    front = data_of(text.removeprefix("\ufeff"))
    assert (front.license, front.base_model, front.library_name) == ("apache-2.0", BASE, "transformers")
    assert before.strip("\ufeff-\r\n") in text
    assert text.startswith("\ufeff") == before.startswith("\ufeff")
    breaks = set(re.findall(r"\r\n|\n", text))
    assert breaks == {"\r\n" if "\r\n" in before else "\n"}


def test_a_base_that_the_card_names_is_its_own_affair(made: Makes) -> None:
    text = told(facts_of(made("moe"), base_card=BASE_CARD), "---\nbase_model: other/one\nlicense: other\n---\n")
    data = data_of(text)
    assert (data.base_model, data.get("base_model_relation")) == ("other/one", None)


@pytest.mark.parametrize("before", ["", "\n \n", "\ufeff"])
def test_an_empty_card_is_none(before: str, made: Makes) -> None:
    facts = facts_of(made("moe"))
    assert told(facts, before) == told(facts)


@pytest.mark.parametrize("before", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}", f"{BEGIN}{BEGIN}{END}"])
def test_markers_that_leave_it_open_what_is_whose(before: str, made: Makes) -> None:
    with pytest.raises(InputError, match="does not say what of it is upcycle's") as raised:
        told(facts_of(made("moe")), f"# Mine\n{before}\n")
    assert raised.value.hint is not None
    assert raised.value.found is not None


@pytest.mark.parametrize("front", ["a: [", "- a", "{a: b}", "a: |\n  text\n b: c", "a: !x {}\n..."])
def test_metadata_that_cannot_be_added_to(front: str, made: Makes) -> None:
    with pytest.raises(InputError, match=r"README\.md") as raised:
        told(facts_of(made("moe")), f"---\n{front}\n---\n# Mine\n")
    assert "at its head" in str(raised.value)


def test_a_name_that_is_no_repository(made: Makes) -> None:
    with pytest.raises(InputError, match="is no name of a repository"):
        card(facts_of(made("moe")), "a/b`c")


def test_the_metadata_of_a_new_card_is_in_order(made: Makes) -> None:
    text = told(facts_of(made("trained"), base_card=BASE_CARD))
    front = yaml.safe_load(text.split("---")[1])
    names = ["language", "license", "library_name", "pipeline_tag", "base_model", "base_model_relation", "tags"]
    assert list(front) == names


def test_an_adapter_names_no_place_of_this_machine(made: Makes, tmp_path: Path) -> None:
    shutil.copytree(made("adapter-lora"), tmp_path / "adapter")
    edit_json(tmp_path / "adapter/adapter_config.json", base_model_name_or_path="/home/me/models/tiny", revision=None)
    text = told(facts_of(tmp_path / "adapter"))
    assert "/home" not in text
    assert "called `tiny`" in text
    assert data_of(text).base_model is None


def test_the_metadata_of_a_marked_card_gets_what_it_lacks(made: Makes) -> None:
    facts = facts_of(made("moe"))
    first = told(facts)  # while the card of the base could not be read
    later = replace(facts, base_card=BASE_CARD)
    text = told(later, first)
    assert (data_of(text).license, data_of(text).language) == ("apache-2.0", ["en", "no"])
    assert text.startswith(first[: first.index("\n---\n")])
    edited = (
        text.replace("license: apache-2.0", "license: mit")
        .replace("- en\n", "- de\n")
        .replace("tags:\n", "tags:\n- a\n")
    )
    edited = edited.replace("pipeline_tag: text-generation\n", "")
    again = told(later, edited)
    assert again.startswith(edited[: edited.index("\n---\n")])
    assert (data_of(again).license, data_of(again).tags[0]) == ("mit", "a")
    assert data_of(again).pipeline_tag == "text-generation"  # what its owner removed comes back
    bare = told(later, text[text.index("# tiny") :])
    assert data_of(bare).to_dict() == data_of(told(later)).to_dict()


def test_a_card_of_another_model_is_refused(made: Makes) -> None:
    other = replace(facts_of(made("moe"), base="other/one"), base_card=BASE_CARD.replace("apache-2.0", "mit"))
    facts = facts_of(made("moe"), base_card=BASE_CARD)
    before = told(other)
    with pytest.raises(InputError, match="has metadata of another model") as raised:
        told(facts, before)
    assert raised.value.found == "base_model: other/one, license: mit"
    assert raised.value.expected == f"base_model: {BASE}, license: apache-2.0"
    assert raised.value.hint == "remove these lines, or the card; it is then written anew"
    mended = before.replace("base_model: other/one\n", "").replace("license: mit\n", "")
    assert data_of(told(facts, mended)).to_dict() == data_of(told(facts)).to_dict()
    listed = before.replace("base_model: other/one\n", f"base_model:\n- other/one\n- {BASE}\n")
    assert data_of(told(facts, listed)).base_model == ["other/one", BASE]
    with pytest.raises(InputError, match="found base_model: other/one"):  # nothing is known of the license now
        told(replace(facts, base_card=None), before)
    local = facts_of(made("unverified"))
    first = told(facts_of(made("unverified"), base="other/one", base_card=BASE_CARD))
    with pytest.raises(InputError, match=r"found base_model: other/one, .* expected base_model: none, .*license: none"):
        told(local, first)
    named = told(local).replace("tags:\n", "base_model: mine/one\ntags:\n")  # by its owner
    assert data_of(told(local, named)).base_model == "mine/one"
    adapter = facts_of(made("adapter-lora"), base_card=BASE_CARD)
    with pytest.raises(InputError, match="found library_name: transformers, base_model_relation: finetune"):
        told(adapter, told(facts))


PEFT_CARD = """\
---
base_model: {base}
# mine
library_name: peft
pipeline_tag: text-generation
tags:
- base_model:adapter:{base}
- lora
- transformers
---

# Model Card for Model ID
"""


@pytest.mark.parametrize("base", ["/home/me/models/tiny", "C:\\models\\tiny", "~/tiny", "../tiny", "'/home/a b/x'"])
@pytest.mark.parametrize("again", [False, True])
def test_a_base_model_that_is_a_place_is_replaced(base: str, again: bool, made: Makes) -> None:
    facts = facts_of(made("adapter-lora"))
    before = PEFT_CARD.format(base=base).replace("adapter:'", "adapter:").replace("x'\n- lora", "x\n- lora")
    before += f"{BEGIN}\n{END}\n" if again else ""
    text = told(facts, before)
    assert text.startswith(
        "---\n# mine\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n- transformers\nbase_model: "
    )
    assert data_of(text).base_model == BASE
    assert told(facts, text) == text
    away = told(replace(facts, base=None), before)  # where it is not known
    assert data_of(away).base_model is None
    assert base.strip("'") not in away


def test_what_peft_wrote_is_the_name_in_the_config(made: Makes) -> None:
    facts = replace(facts_of(made("adapter-lora"), base=BASE), config={"base_model_name_or_path": "build/tiny"})
    assert data_of(told(facts, PEFT_CARD.format(base="build/tiny"))).base_model == BASE
    assert data_of(told(facts, PEFT_CARD.format(base="other/tiny"))).base_model == "other/tiny"  # its owner's own


def test_only_tags_of_places_go(made: Makes) -> None:
    facts = facts_of(made("adapter-lora"))
    text = told(facts, '---\ntags:\n  - "base_model:/home/me"\nbase_model:\n- /home/me\n---\n')
    assert data_of(text).tags == ["moe", "mixture-of-experts", "upcycle", "upcycled"]
    kept = f"---\ntags:\n- base_model:adapter:{BASE}\nbase_model: {BASE}\n"
    assert told(facts, f"{kept}---\n").startswith(kept)
    with pytest.raises(InputError, match="by a place of a machine") as raised:
        told(facts, "---\ntags: [lora, 'base_model:/home/me']\n---\n")
    assert raised.value.hint == "remove those lines"


def test_what_is_outside_of_the_block_and_what_is_missing(made: Makes) -> None:
    text = told(facts_of(made("moe")))
    assert outside(text) == text.replace(block_of(text), "").replace(END, "")
    assert outside("# Mine") == "# Mine"
    assert outside(told(facts_of(made("trained")), text)) == outside(text)
    assert missing(text) == ["license"]
    assert missing(told(facts_of(made("moe"), base_card=BASE_CARD))) == []
    assert missing("---\nlicense: [\n---\n") == missing("---\nlicense:\n---\n") == missing("# Mine") == ["license"]
